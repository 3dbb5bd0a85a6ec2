// Karel: a program written for some worlds, stepped through them, and what a probe reads of each step against what is so.

import { useEffect, useState } from "preact/hooks";
import { type Body, type Model, type Probe, describe, post } from "./api";
import { Calls } from "./calls";
import { KAREL } from "./examples";
import { Menu, Text } from "./fields";
import { Grid } from "./grid";
import { Panel, useRun } from "./run";
import { percent } from "./tokens";
import { truths } from "./truths";
import { type Operation, type Pair, type World, isOperation, read, same, trace } from "./worlds";

interface Readout {
  class: string;
  probability: number;
}

interface Step {
  operation: Operation;
  readout: Readout | null;
}

interface Program {
  pairs: Pair[];
  steps: Step[];
  probe: Probe | undefined;
}

interface Reply {
  choices: { text: string; probes?: { token: string; readouts: Record<string, Readout | null> }[] }[];
}

const ASKED: Record<string, string> = {
  obstacle: "wall ahead?",
  direction: "facing?",
  position: "rows and columns from where it began?",
  turned: "turned from how it began?",
  moved: "cells ahead and to the right of where it began?",
};
const COMMAND = "quietserve serve quiet-small --also karel-small --probe karel.obstacle=karel-obstacle";
const MOST_TOKENS = 24;

export function Karel({ models }: { models: Model[] }) {
  const probed = models.filter(({ id, capabilities }) => capabilities.probes.length || id.includes("karel"));
  if (probed.length) return <Robot models={probed} />;
  return (
    <div class="empty">
      <p>No model of this server writes programs for Karel. One that does comes with quietserve:</p>
      <pre tabIndex={0}>{COMMAND}</pre>
    </div>
  );
}

function Robot({ models }: { models: Model[] }) {
  const [name, setName] = useState(models[0]!.id);
  const [worlds, setWorlds] = useState(KAREL[0]!.worlds);
  const [probe, setProbe] = useState("");
  const [program, setProgram] = useState<Program | null>(null);
  const running = useRun();
  const probes = models.find(({ id }) => id === name)!.capabilities.probes;
  const chosen = probes.find((one) => one.name === probe) ?? probes[0];
  const own: Body = chosen ? { probes: [chosen.name] } : {};
  const body: Body = { model: name, prompt: `Question: ${worlds}\nAnswer:`, temperature: 0, max_tokens: MOST_TOKENS, ...own };
  const wrong = complaint(worlds);
  const change = (text: string) => {
    setWorlds(text);
    setProgram(null);
  };
  const example = KAREL.find((one) => one.worlds === worlds);

  const run = () =>
    running.start(async (signal) => {
      setProgram(null);
      const pairs = read(worlds);
      const { choices } = await post<Reply>("v1/completions", body, signal);
      setProgram({ pairs, steps: steps(choices[0]!, chosen?.name), probe: chosen });
    });

  const options = KAREL.map(({ name: value }) => ({ value, text: value }));
  return (
    <Panel
      title="Karel" running={running} run={run} label="Write a program"
      about="A model of programs alone is shown worlds before and after, and writes what the robot does. A probe says what its hidden state knows of the robot; beside it stands what is so."
      form={
        <>
          <Menu
            label="Example" value={example?.name ?? ""} set={(value) => change(KAREL.find((one) => one.name === value)?.worlds ?? worlds)}
            options={example ? options : [{ value: "", text: "Your own" }, ...options]} hint={example?.hint}
          />
          <Menu label="Model" value={name} set={setName} options={models.map(({ id }) => ({ value: id, text: id }))} />
          {chosen && (
            <Menu label="Probe" value={chosen.name} set={setProbe} options={probes.map((one) => ({ value: one.name, text: one.name }))} />
          )}
          <Text
            label="Worlds" rows={6} value={worlds} set={change}
            hint={wrong ? <strong class="rejected">{wrong}</strong> : "@ robot, # wall, * marker; = where the robot comes to, + and - markers."}
          />
        </>
      }
    >
      <section aria-label="Program" aria-busy={running.busy}>
        {program ? <Stepper key={program.steps} program={program} /> : (
          <>
            <p role="status" class="verdict">{running.busy && <span class="thinking">Writing</span>}</p>
            <Shown worlds={worlds} wrong={wrong} />
          </>
        )}
      </section>
      <Calls path="v1/completions" body={body} />
    </Panel>
  );
}

function complaint(worlds: string): string | null {
  try {
    read(worlds);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : describe(error);
  }
}

/** The operations at the beginning of an answer, each with what the probe says of it. */
function steps({ text, probes = [] }: Reply["choices"][number], probe: string | undefined): Step[] {
  const words = text.trim().split(/\s+/);
  const stop = words.findIndex((word) => !isOperation(word));
  const program = (stop < 0 ? words : words.slice(0, stop)) as Operation[];
  const read = probes.filter(({ token }) => isOperation(token.trim()));
  return program.map((operation, number) => ({ operation, readout: probe ? (read[number]?.readouts[probe] ?? null) : null }));
}

function Shown({ worlds, wrong }: { worlds: string; wrong: string | null }) {
  if (wrong) return <p class="empty">The worlds cannot be drawn.</p>;
  return <Worlds pairs={read(worlds)} now={read(worlds).map(({ before }) => before)} ended={false} />;
}

const PACE_MS = 700;

function Stepper({ program: { pairs, steps, probe } }: { program: Program }) {
  const [at, setAt] = useState(0);
  const [playing, setPlaying] = useState(false);
  const traces = pairs.map(({ before }) => trace(before, steps.map(({ operation }) => operation)));
  const solved = pairs.every(({ after }, number) => same(traces[number]!.at(-1)!, after));
  useEffect(() => {
    if (!playing) return;
    if (at === steps.length) return setPlaying(false);
    const timer = setTimeout(() => setAt(at + 1), PACE_MS);
    return () => clearTimeout(timer);
  }, [playing, at]);
  const go = (to: number) => setAt(Math.max(0, Math.min(steps.length, to)));
  const play = () => {
    if (at === steps.length) setAt(0);
    setPlaying(!playing);
  };
  return (
    <>
      <p role="status" class="verdict">
        {!steps.length ? "It wrote no program." : solved ? "The program does what is wanted in every world." : "The program does not do what is wanted."}
      </p>
      <div class="toolbar">
        <button type="button" onClick={play} aria-disabled={!steps.length}>{playing ? "Pause" : "Play"}</button>
        <button type="button" onClick={() => go(at - 1)} aria-disabled={at === 0}>Back</button>
        <button type="button" onClick={() => go(at + 1)} aria-disabled={at === steps.length}>Step</button>
        <span role="status">{at === 0 ? "Before the first step" : `After step ${at} of ${steps.length}: ${steps[at - 1]!.operation}`}</span>
      </div>
      <Worlds pairs={pairs} now={traces.map((worlds) => worlds[at]!)} ended={at === steps.length} />
      <Steps steps={steps} worlds={traces[0]!} probe={probe} at={at} go={go} />
    </>
  );
}

function Worlds({ pairs, now, ended }: { pairs: Pair[]; now: World[]; ended: boolean }) {
  return (
    <ol class="worlds">
      {pairs.map(({ after }, number) => (
        <li key={number}>
          <h3>World {number + 1} {ended && <span class={same(now[number]!, after) ? "badge" : "badge bad"}>{same(now[number]!, after) ? "as wanted" : "not as wanted"}</span>}</h3>
          <div>
            <figure><Grid world={now[number]!} label="Now" /><figcaption>now</figcaption></figure>
            <figure><Grid world={after} label="Wanted" /><figcaption>wanted</figcaption></figure>
          </div>
        </li>
      ))}
    </ol>
  );
}

function Steps({ steps, worlds, probe, at, go }: {
  steps: Step[];
  worlds: World[]; // the first one, before the first step and behind each
  probe: Probe | undefined;
  at: number;
  go: (step: number) => void;
}) {
  const so = probe && truths(probe.property, worlds, probe.offset);
  return (
    <table class="steps">
      <caption>
        {probe ? `What the probe reads of “${probe.property}”${later(probe.offset)}, and what is so in world 1` : "The program"}
        {so && score(steps, so)}
      </caption>
      <thead>
        <tr>
          <th scope="col">Step</th>
          {probe && <th scope="col">The probe: {ASKED[probe.property] ?? probe.property}</th>}
          {so && <th scope="col">The truth</th>}
        </tr>
      </thead>
      <tbody>
        {steps.map(({ operation, readout }, number) => (
          <tr key={number} aria-current={number + 1 === at ? "step" : undefined}>
            <th scope="row"><button type="button" class="step" onClick={() => go(number + 1)}>{number + 1}. <code>{operation}</code></button></th>
            {probe && <td>{readout ? `${readout.class}, ${percent(readout.probability)}` : "nothing"}</td>}
            {so && <Truth so={so[number]!} readout={readout} offset={probe.offset} />}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** How many of the readouts that can be judged are right. */
function score(steps: Step[], so: (string | null)[]): string {
  const judged = steps.flatMap(({ readout }, number) => (readout && so[number] !== null ? [readout.class === so[number]] : []));
  return judged.length ? `: ${judged.filter(Boolean).length} of ${judged.length} right` : "";
}

function later(offset: number): string {
  const steps = Math.abs(offset) === 1 ? "one step" : `${Math.abs(offset)} steps`;
  return offset ? `, ${steps} ${offset > 0 ? "later" : "earlier"}` : "";
}

function Truth({ so, readout, offset }: { so: string | null; readout: Readout | null; offset: number }) {
  if (so === null) return <td>no such step: {offset > 0 ? "the program has ended" : "it has not begun"}</td>;
  if (!readout) return <td>{so}</td>;
  const agrees = readout.class === so;
  return (
    <td class={agrees ? "right" : "wrong"}>
      {so} <span aria-hidden="true">{agrees ? "✓" : "✗"}</span><span class="unseen">{agrees ? "the probe is right" : "the probe is wrong"}</span>
    </td>
  );
}
