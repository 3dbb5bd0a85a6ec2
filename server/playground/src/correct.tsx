// Self-correction: each attempt, and what the next one changed.

import { useState } from "preact/hooks";
import { type Body, type Model, post } from "./api";
import { Calls } from "./calls";
import { diff, words } from "./diff";
import { CORRECT } from "./examples";
import { Slider } from "./fields";
import { Panel, useRun } from "./run";
import { ExampleMenu, Knobs, ModelMenu, Question, begin, bodyOf, pathOf, usable } from "./settings";

interface Reply {
  choices: {
    text?: string;
    message?: { content: string };
    self_correction: { turns_run: number; changed: boolean; turns: { text: string }[] };
  }[];
}

export function Correct({ models }: { models: Model[] }) {
  const able = models.filter(({ capabilities }) => capabilities.self_correction);
  if (!able.length) return <p class="empty">This server has self-correction switched off.</p>;
  return <Correction models={able} />;
}

function Correction({ models }: { models: Model[] }) {
  const examples = usable(CORRECT, models);
  const [settings, set] = useState(() => begin(examples[0]!, models));
  const [wanted, setTurns] = useState(1);
  const [attempts, setAttempts] = useState<string[]>([]);
  const running = useRun();
  const editing = { settings, set, models };
  const model = models.find(({ id }) => id === settings.model);
  const most = model?.capabilities.max_self_correction_turns ?? 1;
  const turns = Math.min(wanted, most);
  const body: Body = { ...bodyOf(settings, model), self_correction_turns: turns, return_drafts: true };

  const run = () =>
    running.start(async (signal) => {
      setAttempts([]);
      const { choices } = await post<Reply>(pathOf(settings), body, signal);
      const { text, message, self_correction } = choices[0]!;
      setAttempts([...self_correction.turns.map((turn) => turn.text), text ?? message!.content]);
    });

  return (
    <Panel
      title="Correct" running={running} run={run} label="Answer and correct"
      about="The model reads its own answer again, is asked whether there is an error, and answers once more. Only the last attempt is the answer."
      form={
        <>
          <ExampleMenu {...editing} examples={examples} />
          <ModelMenu {...editing} />
          <Question {...editing} rows={3} />
          <Slider label="Corrections" value={turns} min={1} max={most} set={setTurns} hint="The bundled score-small has learned one." />
          <Knobs {...editing} />
        </>
      }
    >
      <section aria-label="Attempts" aria-busy={running.busy}>
        <p role="status" class="verdict">{running.busy ? <span class="thinking">Answering</span> : verdict(attempts)}</p>
        {attempts.length ? (
          <ol class="attempts">
            {attempts.map((attempt, number) => (
              <li key={number}>
                <h3>
                  Attempt {number + 1} {number === attempts.length - 1 && <span class="badge">the answer</span>}
                </h3>
                <Changes before={attempts[number - 1]} after={attempt} />
              </li>
            ))}
          </ol>
        ) : (
          !running.busy && <p class="empty">Nothing is answered yet.</p>
        )}
      </section>
      <Calls path={pathOf(settings)} body={body} />
    </Panel>
  );
}

function verdict(attempts: string[]): string {
  if (!attempts.length) return "";
  const [first, last] = [attempts[0]!, attempts.at(-1)!];
  if (first.trim() === last.trim()) return "The last attempt says what the first one said.";
  const parts = diff(trimmed(first), trimmed(last));
  const count = (kind: string) => parts.filter((part) => part.kind === kind).length;
  return `From the first attempt to the last, ${count("removed")} words went and ${count("added")} came.`;
}

const trimmed = (text: string) => words(text).map((word) => word.trim());

/** An attempt with what it took out of the one before, and what it put in. */
function Changes({ before, after }: { before: string | undefined; after: string }) {
  if (before === undefined) return <p class="attempt">{after.trim()}</p>;
  return (
    <p class="attempt">
      {diff(trimmed(before), trimmed(after)).map(({ kind, item }, number) => (
        <span key={number}>{kind === "removed" ? <del>{item}</del> : kind === "added" ? <ins>{item}</ins> : item} </span>
      ))}
    </p>
  );
}
