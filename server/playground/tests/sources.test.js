// What needs no browser: differences, Karel's interpreter against the package's own, and calls as shells and Python read them.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { dirname } from "node:path";
import { test } from "node:test";
import { build } from "esbuild";
import { COMMAND } from "./browser.js";

async function source(name) {
  const { outputFiles } = await build({ entryPoints: [`src/${name}.ts`], bundle: true, write: false, format: "esm" });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
}

function python(code, input = "") {
  const { status, stdout, stderr } = spawnSync(`${dirname(COMMAND)}/python`, ["-c", code], { input, encoding: "utf8", maxBuffer: 2 ** 26 });
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

test("a difference leads from one text to the other, and keeps what they share", async () => {
  const { diff, words } = await source("diff");
  const of = (parts, kinds) => parts.filter(({ kind }) => kinds.includes(kind)).map(({ item }) => item).join("");
  for (const [before, after, shared] of [["", "", ""], ["abc", "", ""], ["", "abc", ""], ["abcde", "xbdy", "bd"], ["aaa", "aa", "aa"], ["abcabba", "cbabac", 4]]) {
    const parts = diff([...before], [...after]);
    assert.deepEqual([of(parts, ["same", "removed"]), of(parts, ["same", "added"])], [before, after]);
    if (typeof shared === "string") assert.equal(of(parts, ["same"]), shared);
    else assert.equal(of(parts, ["same"]).length, shared);
  }
  assert.deepEqual(words(" two  words\n"), [" two", "  words"]);
});

test("metrics are summed over models, and a server that began anew has no negative pace", async () => {
  const { rates, readMetrics } = await source("metrics");
  const text = `# HELP quietserve_num_requests_running so many
quietserve_num_requests_running{model_name="a"} 1.0
quietserve_num_requests_running{model_name="b"} 2.0
quietserve_num_requests_waiting 4.0
quietserve_num_requests_waiting_room 9.0
quietserve_generation_tokens_total{kind="visible",model_name="a"} 10.0
quietserve_generation_tokens_total{kind="discarded",model_name="b"} 20.0
quietserve_generation_tokens_total{kind="thought",model_name="a"} 1e+02
quietserve_forwards_per_token_sum{model_name="a",thinking="fixed"} 3.0
quietserve_forwards_per_token_count{model_name="a",thinking="fixed"} 2.0
quietserve_forwards_per_token_sum{model_name="a",thinking="off"} 5.0
quietserve_forwards_per_token_count{model_name="a",thinking="off"} 5.0
quietserve_speculative_tokens_total{model_name="a",outcome="accepted"} 9.0
quietserve_speculative_tokens_total{model_name="a",outcome="rejected"} 1.0
quietserve_speculative_tokens_total{model_name="a",outcome="dropped"} 7.0
`;
  const [none, all] = [readMetrics("", 0), readMetrics(text, 2)];
  assert.deepEqual(rates(none, all), { visible: 15, hidden: 50, forwards: 1.5, accepted: 0.9, running: 3, waiting: 4 });
  assert.deepEqual(rates(all, { ...none, at: 4 }), { visible: 0, hidden: 0, forwards: null, accepted: null, running: 0, waiting: 0 });
});

test("Karel's worlds are read and run as the package does it", async () => {
  const { isBlocked, read, same, trace } = await source("worlds");
  const tasks = python(`
import json, random
from quietserve.model.training.tasks.karel import compact, programs
from quietserve.model.training.tasks.karel.interpreter import is_blocked, trace
from quietserve.model.training.tasks.karel.synthesis import FAMILIES
rng, told = random.Random(0), []
for family in list(FAMILIES.values()) * 60:
    problem = family.sample(rng, family.steps[0])
    program = rng.choice([problem.answer, family.attempt(rng, problem), "pick move left put put move right move pick move"])
    before, _ = compact.read(problem.question)
    ops = programs.collect([programs.read(program)]).repeat(len(before), 0)
    told.append([problem.question, program, family.verify(problem, program), [is_blocked(now).tolist() for now in trace(before, ops)]])
print(json.dumps(told))`);
  const solved = new Set();
  for (const [worlds, program, right, blocked] of tasks) {
    const pairs = read(worlds);
    const traces = pairs.map(({ before }) => trace(before, program.split(" ")));
    assert.equal(pairs.every(({ after }, number) => same(traces[number].at(-1), after)), right, `${worlds} | ${program}`);
    const found = blocked.map((_, number) => traces.map((trace) => Number(isBlocked(trace[number + 1]))));
    assert.deepEqual(found, blocked, `${worlds} | ${program}`);
    solved.add(right);
  }
  assert.deepEqual(solved, new Set([true, false]));
});

test("the truths that a probe is held against are the labels that it learns from", async () => {
  const [{ read, trace }, { truths }] = [await source("worlds"), await source("truths")];
  const tasks = python(`
import json, random
from quietserve.model.training.karel_traces import PROPERTIES, abstract_states
from quietserve.model.training.tasks.karel import compact, programs
from quietserve.model.training.tasks.karel.synthesis import FAMILIES
from quietserve.model.training.traces import Trace
rng, told, family = random.Random(0), [], FAMILIES["karel-4x4"]
for number in range(60):
    question = family.sample(rng, family.steps[0]).question
    program = " ".join(rng.choices(["move", "move", "left", "right", "pick", "put"], k=8))
    [states] = abstract_states(compact.read(question)[0][:1], [programs.read(program)], "original")
    trace = Trace((), {name: tuple(enumerate(state[name] for state in states)) for name in PROPERTIES})
    pairs = {name: {offset: trace.pairs(name, offset) for offset in (-2, -1, 0, 1)} for name in PROPERTIES}
    told.append([question, program, pairs])
print(json.dumps(told))`);
  const seen = {};
  for (const [worlds, program, pairs] of tasks) {
    const first = trace(read(worlds)[0].before, program.split(" "));
    for (const [property, offsets] of Object.entries(pairs)) {
      for (const [offset, labels] of Object.entries(offsets)) {
        const found = truths(property, first, Number(offset)).flatMap((so, number) => (so === null ? [] : [[number, so]]));
        assert.deepEqual(found, labels, `${property} ${offset}: ${worlds} | ${program}`);
      }
      for (const [, label] of offsets[0]) (seen[property] ??= new Set()).add(label);
    }
    assert.equal(truths("weather", first, 0), undefined);
  }
  assert.deepEqual([...seen.turned].sort(), ["left", "not", "right", "round"]);
  assert.deepEqual(Object.keys(seen).sort(), ["direction", "moved", "obstacle", "position", "turned"]);
});

for (const [text, word] of [["", "“”"], ["4x5 @r0c0N", "“4x5”"], ["4x4", "no world"], ["4x4 #r0c0", "“#r0c0”"], ["4x4 @r4c0N", "“@r4c0N”"], ["4x4 @r0c0", "“@r0c0”"], ["4x4 @r0c0N +r0c0", "“+r0c0”"], ["4x4 @r0c0N", "@r0c0N"], ["4x4 @r0c0N jump", "“jump”"]]) {
  test(`worlds that cannot be are told by their word: ${text}`, async () => {
    const { read } = await source("worlds");
    assert.throws(() => read(text), (error) => error.message.includes(word));
  });
}

const BODY = {
  model: "it's", messages: [{ role: "user", content: `"quotes", it's \\ and\nlines – ü 🙂 $HOME` }],
  temperature: 0, seed: 5, stream: true, logprobs: false, stop: null, thought_depth: 12, probes: [], chat_template_kwargs: { enable_thinking: true },
};

for (const guarded of [false, true]) {
  test(`calls say what is asked, ${guarded ? "and whose key" : "and no key"}`, async () => {
    const call = await source("call");
    const url = "http://127.0.0.1:8000/";
    const shell = `curl() { printf '%s\\n' "$@" | sed -n 2p >&2; printf %s "\${@: -1}"; }; QUIETSERVE_API_KEY=k; ${call.curl(url, "v1/chat/completions", BODY, guarded)}`;
    const { stdout, stderr } = spawnSync("bash", ["-c", shell], { encoding: "utf8" });
    assert.deepEqual(JSON.parse(stdout), BODY);
    assert.equal(stderr.trim(), "http://127.0.0.1:8000/v1/chat/completions");
    assert.equal(shell.includes("Bearer $QUIETSERVE_API_KEY"), guarded);

    const asked = python(`
import ast, json, sys
made = [node for node in ast.walk(ast.parse(sys.stdin.read())) if isinstance(node, ast.Call) and node.keywords]
call = next(node for node in made if ast.unparse(node.func) == "client.chat.completions.create")
print(json.dumps({word.arg: ast.literal_eval(word.value) for word in call.keywords}))`, call.python(url, "v1/chat/completions", BODY, guarded));
    const { extra_body, ...named } = asked;
    assert.deepEqual({ ...named, ...extra_body }, BODY);
    assert.deepEqual(Object.keys(extra_body), ["thought_depth", "probes", "chat_template_kwargs"]);
  });
}
