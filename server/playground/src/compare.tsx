// Two depths side by side, with one seed: what deeper thoughts change.

import { useMemo, useState } from "preact/hooks";
import { type Answer, type Base, NOTHING, answers, bases, didThink, told } from "./answer";
import type { Body, Model } from "./api";
import { Calls } from "./calls";
import { diff } from "./diff";
import { COMPARE } from "./examples";
import { Slider } from "./fields";
import { Panel, useRun } from "./run";
import { ExampleMenu, Knobs, ModelMenu, Question, type Settings, begin, bodyOf, pathOf, usable } from "./settings";
import { Summary } from "./summary";
import { Inspector, Legend, Tokens } from "./tokens";

const SIDES = [0, 1] as const;
type Pair<T> = [T, T];

export function Compare({ models }: { models: Model[] }) {
  const thinking = models.filter(({ capabilities, parent }) => capabilities.thinking && !parent);
  if (!thinking.length) return <p class="empty">No model of this server thinks, so there are no depths to compare.</p>;
  return <Comparison models={thinking} />;
}

function Comparison({ models }: { models: Model[] }) {
  const examples = usable(COMPARE, models);
  const [settings, set] = useState(() => begin(examples[0]!, models));
  const [depths, setDepths] = useState<Pair<number>>(() => [0, settings.depth]);
  const [both, setBoth] = useState<Pair<Answer>>([NOTHING, NOTHING]);
  const [compared, setCompared] = useState<Pair<Base[]>>([[], []]);
  const [shown, setShown] = useState(depths);
  const [picked, setPicked] = useState<{ side: number; number: number } | null>(null);
  const running = useRun();
  const model = models.find(({ id }) => id === settings.model)!;
  const editing = { settings, set, models };
  const most = model.capabilities.max_thought_depth;
  const bodies = depths.map((depth) => body({ ...settings, depth: Math.min(depth, most) }, model));

  const one = async (side: number, signal: AbortSignal) => {
    let last = NOTHING;
    for await (last of answers(pathOf(settings), bodies[side]!, signal)) setBoth(replaced(side, last));
    if (!didThink(last)) return;
    for await (const known of bases(bodies[side]!, last, signal)) setCompared(replaced(side, known));
  };
  const run = () =>
    running.start((signal) => {
      setBoth([NOTHING, NOTHING]);
      setCompared([[], []]);
      setShown(depths);
      setPicked(null);
      return Promise.all(SIDES.map((side) => one(side, signal)));
    });

  const marked = useMemo(() => (running.busy ? [[], []] : differences(both)), [running.busy, both]);
  return (
    <Panel
      title="Compare depths" running={running} run={run} label="Compare"
      about="The same question and the same seed at two depths, at once. Where the two answers part, tokens are framed."
      form={
        <>
          <ExampleMenu {...editing} examples={examples} />
          <ModelMenu {...editing} />
          <Question {...editing} />
          <Knobs
            {...editing}
            depths={SIDES.map((side) => (
              <Slider
                key={side} label={side ? "Right: thought depth" : "Left: thought depth"} max={most} value={Math.min(depths[side], most)}
                set={(depth) => setDepths(side ? [depths[0], depth] : [depth, depths[1]])}
              />
            ))}
          />
        </>
      }
    >
      <section aria-label="Answers" aria-busy={running.busy}>
        <p role="status" class="verdict">{!running.busy && verdict(both, marked)}</p>
        <div class="sides">
          {SIDES.map((side) => (
            <div key={side}>
              <h3>Depth {shown[side]}</h3>
              <Summary answer={both[side]} busy={running.busy && both[side].finish === null} />
              <Tokens
                answer={both[side]} marked={marked[side]} mark="differs" label={`Answer at depth ${shown[side]}; arrow keys go from token to token`}
                picked={picked?.side === side ? picked.number : null} pick={(number) => setPicked({ side, number })}
              />
            </div>
          ))}
        </div>
        {both.some(({ tokens }) => tokens.length) ? <Legend changes={false} /> : !running.busy && <p class="empty">Nothing is compared yet.</p>}
        {picked && both[picked.side]!.tokens[picked.number] && (
          <Inspector answer={both[picked.side]!} number={picked.number} base={compared[picked.side]![picked.number]} />
        )}
      </section>
      {SIDES.map((side) => (
        <Calls key={side} path={pathOf(settings)} body={bodies[side]!} title={`The call on the ${side ? "right" : "left"}`} />
      ))}
    </Panel>
  );
}

function replaced<T>(side: number, value: T): (old: Pair<T>) => Pair<T> {
  return ([left, right]) => (side ? [left, value] : [value, right]);
}

function body(settings: Settings, model: Model): Body {
  return { ...bodyOf(settings, model), stream: true, ...told(settings.kind === "chat") };
}

/** Which tokens of each are not the other's, as far as their longest common subsequence goes. */
function differences([left, right]: Pair<Answer>): Pair<boolean[]> {
  const parts = diff(left.tokens.map(({ id }) => id), right.tokens.map(({ id }) => id));
  const without = (kind: string) => parts.filter((part) => part.kind !== kind).map((part) => part.kind !== "same");
  return [without("added"), without("removed")];
}

function verdict([left, right]: Pair<Answer>, marked: boolean[][]): string {
  if (!left.tokens.length || !right.tokens.length) return "";
  const first = left.tokens.findIndex((token, number) => token.id !== right.tokens[number]?.id);
  if (first < 0 && left.tokens.length === right.tokens.length) return "Both say the same, token for token.";
  const [fewer, more] = marked.map((tokens) => tokens.filter(Boolean).length);
  const place = first < 0 ? left.tokens.length : first;
  return `They part at token ${place + 1}; ${fewer} on the left and ${more} on the right are not in the other answer.`;
}
