// Completion and chat, streamed, with every token's thoughts.

import { useRef, useState } from "preact/hooks";
import { type Answer, type Base, NOTHING, answers, bases, didThink, told } from "./answer";
import type { Body, Model } from "./api";
import { Calls } from "./calls";
import { WRITE } from "./examples";
import { Panel, useRun } from "./run";
import { ExampleMenu, Knobs, type Message, ModelMenu, Question, begin, bodyOf, pathOf, usable } from "./settings";
import { Summary } from "./summary";
import { Inspector, Legend, Tokens, changed } from "./tokens";

export function Write({ models }: { models: Model[] }) {
  const examples = usable(WRITE, models);
  const [settings, set] = useState(() => begin(examples[0]!, models));
  const [answer, setAnswer] = useState<Answer>(NOTHING);
  const [compared, setCompared] = useState<Base[]>([]);
  const [picked, pick] = useState<number | null>(null);
  const [history, setHistory] = useState<Message[]>([]);
  const asked = useRef("");
  const running = useRun();
  const editing = { settings, set, models };
  const model = models.find(({ id }) => id === settings.model);
  const body: Body = { ...bodyOf(settings, model, history), stream: true, ...told(settings.kind === "chat") };
  const thinks = Boolean(model?.capabilities.thinking && !model.parent && settings.depth);

  const run = () =>
    running.start(async (signal) => {
      setAnswer(NOTHING);
      setCompared([]);
      pick(null);
      let last = NOTHING;
      asked.current = settings.prompt;
      for await (last of answers(pathOf(settings), body, signal)) setAnswer(last);
      if (!thinks) return;
      for await (const known of bases(body, last, signal)) setCompared(known);
    });

  const goOn = () => {
    if (!answer.text || running.busy) return;
    setHistory([...history, { role: "user", content: asked.current }, { role: "assistant", content: answer.text.trim() }]);
    setAnswer(NOTHING);
    set({ ...settings, prompt: "" });
  };

  return (
    <Panel
      title="Write" running={running} run={run} label="Write"
      about="Before each token the model thinks a little, unseen. Point at a token to see what was thought, and what would have been said without; click it to hold it."
      form={
        <>
          <ExampleMenu {...editing} examples={examples} />
          <ModelMenu {...editing} />
          <Question {...editing} />
          {settings.kind === "chat" && (answer.finish !== null || history.length > 0) && (
            <div class="actions">
              <button type="button" onClick={goOn} aria-disabled={!answer.text || running.busy}>Go on from this answer</button>
              <button type="button" onClick={() => setHistory([])} aria-disabled={!history.length}>Forget what was said</button>
            </div>
          )}
          <Knobs {...editing} />
        </>
      }
    >
      {settings.kind === "chat" && history.length > 0 && <History messages={history} />}
      <Output answer={answer} compared={compared} busy={running.busy} picked={picked} pick={pick} />
      <Calls path={pathOf(settings)} body={body} />
    </Panel>
  );
}

function History({ messages }: { messages: Message[] }) {
  return (
    <section aria-label="What was said">
      <ol class="history">
        {messages.map(({ role, content }, number) => <li key={number}><strong>{role === "user" ? "You" : "Model"}</strong> {content}</li>)}
      </ol>
    </section>
  );
}

function Output({ answer, compared, busy, picked, pick }: {
  answer: Answer;
  compared: Base[];
  busy: boolean;
  picked: number | null;
  pick: (number: number) => void;
}) {
  return (
    <section aria-label="Answer" aria-busy={busy}>
      <Summary answer={answer} busy={busy} />
      {answer.warnings.map((warning) => <p class="hint" key={warning}>{warning}</p>)}
      <Tokens answer={answer} bases={compared} picked={picked} pick={pick} label="Answer; arrow keys go from token to token" />
      {!busy && !answer.tokens.length && <p class="empty">Nothing is written yet: press “Write”, or Ctrl and Enter.</p>}
      {didThink(answer) && <Legend changes={answer.tokens.some((token, number) => changed(token, compared[number]))} />}
      {picked !== null && picked < answer.tokens.length && (
        <Inspector answer={answer} number={picked} base={compared[picked]} />
      )}
    </section>
  );
}
