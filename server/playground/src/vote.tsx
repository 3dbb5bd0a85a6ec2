// Many answers, one vote: a bar for each answer, and whoever gave it.

import { useState } from "preact/hooks";
import { type Body, type Model, post } from "./api";
import { Calls } from "./calls";
import { VOTE } from "./examples";
import { Choice, Menu, Slider } from "./fields";
import { Panel, useRun } from "./run";
import { ExampleMenu, Knobs, ModelMenu, Question, begin, bodyOf, pathOf, usable } from "./settings";
import { Bar, percent } from "./tokens";

type Strategy = "majority" | "likelihood" | "ranker";

interface Group {
  answer: string;
  count: number;
  weight: number;
  score?: number;
  sample_indices: number[];
}

interface Sample {
  index: number;
  answer: string | null;
  text: string;
  num_tokens: number;
  mean_logprob: number | null;
  score?: number;
}

interface Voting {
  ranker?: string;
  num_samples: number;
  num_valid: number;
  agreement: number;
  tie: boolean;
  groups: Group[];
  samples: Sample[];
}

const STRATEGIES: { value: Strategy; text: string }[] = [
  { value: "majority", text: "Majority" },
  { value: "likelihood", text: "Likelihood" },
  { value: "ranker", text: "Ranker" },
];
const PATTERNS = [
  { value: "full_text", text: "all of its text" },
  { value: "last_number", text: "its last number" },
  { value: "boxed", text: "what it boxes" },
  { value: "choice", text: "a choice’s letter" },
];

export function Vote({ models }: { models: Model[] }) {
  const examples = usable(VOTE, models);
  const [settings, set] = useState(() => begin(examples[0]!, models));
  const [wanted, setSamples] = useState(12);
  const [strategy, setStrategy] = useState<Strategy>("ranker");
  const [ranker, setRanker] = useState("");
  const [pattern, setPattern] = useState("full_text");
  const [voting, setVoting] = useState<Voting | null>(null);
  const running = useRun();
  const editing = { settings, set, models };
  const model = models.find(({ id }) => id === settings.model);
  const most = model?.capabilities.max_best_of ?? 2;
  const samples = Math.min(wanted, most);
  const rankers = model?.capabilities.rankers ?? [];
  const judge = rankers.includes(ranker) ? ranker : (rankers[0] ?? "");
  const own: Body = strategy === "ranker" ? { ranker: judge } : {};
  const body: Body = {
    ...bodyOf(settings, model), best_of: samples, voting: strategy, ...own, answer_pattern: pattern, return_samples: true,
  };

  const run = () =>
    running.start(async (signal) => {
      setVoting(null);
      setVoting((await post<{ voting: Voting }>(pathOf(settings), body, signal)).voting);
    });

  return (
    <Panel
      title="Vote" running={running} run={run} label="Draw and vote"
      about="Several answers are drawn; those that say the same are counted together, each weighed alike, by its likelihood, or by how a ranker scores it."
      form={
        <>
          <ExampleMenu {...editing} examples={examples} />
          <ModelMenu {...editing} />
          <Question {...editing} rows={3} />
          <Slider label="Answers drawn" value={samples} min={2} max={most} set={setSamples} />
          <Choice label="Weighed by" value={strategy} set={setStrategy} options={STRATEGIES} />
          {strategy === "ranker" && (
            <Menu label="Ranker" value={judge} set={setRanker} options={rankers.map((name) => ({ value: name, text: name }))} />
          )}
          <Menu label="What counts as its answer" value={pattern} set={setPattern} options={PATTERNS} />
          <Knobs {...editing} />
        </>
      }
    >
      <section aria-label="Votes" aria-busy={running.busy}>
        <p role="status" class="verdict">{running.busy ? <span class="thinking">Drawing answers</span> : voting && verdict(voting)}</p>
        {voting ? <Groups voting={voting} /> : !running.busy && <p class="empty">Nobody has voted yet.</p>}
      </section>
      <Calls path={pathOf(settings)} body={body} />
    </Panel>
  );
}

function verdict({ groups, num_samples, num_valid, tie }: Voting): string {
  if (!groups.length) return `None of ${num_samples} answers had anything to vote with.`;
  const { answer, count, weight } = groups[0]!;
  const silent = num_samples - num_valid;
  return (
    `“${answer}” wins with ${percent(weight)} of the weight, from ${count} of ${num_samples} answers` +
    `${silent ? `; ${silent} abstained` : ""}${tie ? "; a tie, which the likelier won" : ""}.`
  );
}

function Groups({ voting }: { voting: Voting }) {
  const silent = voting.samples.filter(({ answer }) => answer === null);
  return (
    <ol class="groups">
      {voting.groups.map((group, place) => (
        <li key={group.answer}>
          <details>
            <summary>
              <code>{group.answer}</code> {place === 0 && <span class="badge">elected</span>}
              <span class="tally">
                <Bar share={group.weight} /> {percent(group.weight)} of the weight · {group.count} of {voting.num_samples}
                {group.score !== undefined && <> · score {group.score.toFixed(2)}</>}
              </span>
            </summary>
            <Samples samples={group.sample_indices.map((index) => voting.samples.find((sample) => sample.index === index)!)} />
          </details>
        </li>
      ))}
      {silent.length > 0 && (
        <li>
          <details>
            <summary>No answer was found in {silent.length}, which abstained</summary>
            <Samples samples={silent} />
          </details>
        </li>
      )}
    </ol>
  );
}

function Samples({ samples }: { samples: Sample[] }) {
  const scored = samples.some(({ score }) => score !== undefined);
  return (
    <table>
      <thead>
        <tr>
          <th scope="col">No.</th><th scope="col">Text</th><th scope="col">Likelihood</th>{scored && <th scope="col">Score</th>}
        </tr>
      </thead>
      <tbody>
        {samples.map(({ index, text, mean_logprob, score }) => (
          <tr key={index}>
            <td>{index + 1}</td>
            <td><code>{text.trim()}</code></td>
            <td>{mean_logprob === null ? "" : Math.exp(mean_logprob).toFixed(2)}</td>
            {scored && <td>{score?.toFixed(2)}</td>}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
