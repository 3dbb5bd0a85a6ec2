// Completion and chat, streamed, with every token's thoughts.

import { useState } from "preact/hooks";
import { type Answer, type Base, NOTHING, answers, bases, told } from "./answer";
import type { Body, Model } from "./api";
import { Calls } from "./calls";
import { WRITE } from "./examples";
import { Panel, useRun } from "./run";
import { ExampleMenu, Knobs, ModelMenu, Question, begin, bodyOf, pathOf, usable } from "./settings";
import { Summary } from "./summary";
import { Inspector, Legend, Tokens } from "./tokens";

const AT_ONCE = 16; // places that the base is asked about in one request

export function Write({ models }: { models: Model[] }) {
  const examples = usable(WRITE, models);
  const [settings, set] = useState(() => begin(examples[0]!, models));
  const [answer, setAnswer] = useState<Answer>(NOTHING);
  const [compared, setCompared] = useState<Base[]>([]);
  const [picked, pick] = useState<number | null>(null);
  const running = useRun();
  const editing = { settings, set, models };
  const model = models.find(({ id }) => id === settings.model);
  const body: Body = { ...bodyOf(settings, model), stream: true, ...told(settings.kind === "chat") };
  const thinks = Boolean(model?.capabilities.thinking && !model.parent && settings.depth);

  const run = () =>
    running.start(async (signal) => {
      setCompared([]);
      pick(null);
      let last = NOTHING;
      for await (last of answers(pathOf(settings), body, signal)) setAnswer(last);
      if (!thinks) return;
      for (let first = 0; first < last.tokens.length; first += AT_ONCE) {
        const more = await bases(body, last, first, first + AT_ONCE, signal);
        setCompared((known) => [...known, ...more]);
      }
    });

  return (
    <Panel
      title="Write" running={running} run={run} label="Write"
      about="Before each token the model thinks a little, unseen. Point at a token to see what was thought, and what would have been said without; click it to hold it."
      form={
        <>
          <ExampleMenu {...editing} examples={examples} />
          <ModelMenu {...editing} />
          <Question {...editing} />
          <Knobs {...editing} />
        </>
      }
    >
      <Output answer={answer} compared={compared} busy={running.busy} picked={picked} pick={pick} />
      <Calls path={pathOf(settings)} body={body} />
    </Panel>
  );
}

function Output({ answer, compared, busy, picked, pick }: {
  answer: Answer;
  compared: Base[];
  busy: boolean;
  picked: number | null;
  pick: (number: number) => void;
}) {
  const thought = answer.tokens.some((token) => token.thoughts.length);
  return (
    <section aria-label="Answer" aria-busy={busy}>
      <Summary answer={answer} busy={busy} />
      {answer.warnings.map((warning) => <p class="hint" key={warning}>{warning}</p>)}
      {answer.tokens.length > 0 ? (
        <Tokens answer={answer} bases={compared} picked={picked} pick={pick} label="Answer; arrow keys go from token to token" />
      ) : (
        <p class="empty">Nothing is written yet: press “Write”, or Ctrl and Enter.</p>
      )}
      {thought && <Legend changes={compared.some((base, i) => base.draft !== answer.tokens[i]?.id)} />}
      {picked !== null && picked < answer.tokens.length && (
        <Inspector
          answer={answer} number={picked} base={compared[picked]}
          missing={thought ? "What the base alone would have said is not known yet." : "It did not think: this is the base’s own choice."}
        />
      )}
    </section>
  );
}
