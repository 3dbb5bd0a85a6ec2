// Every panel, driven as a person would, in a real Chromium against the bundled models.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { dirname } from "node:path";
import { after, before, test } from "node:test";
import { ALL, COMMAND, assertClean, launch, panel, serve, shoot } from "./browser.js";

let server, browser;
before(async () => {
  server = await serve(...ALL); // first: a browser that nothing closes keeps this process from ending
  browser = await launch();
});
after(() => Promise.all([server?.stop(), browser?.close()]));

const text = (locator) => locator.innerText();
const tokens = (shown) => shown.locator(".tokens .token");
const choose = (shown, label, option) => shown.getByLabel(label, { exact: true }).selectOption(option);
const radio = (shown, name) => shown.getByRole("radio", { name });
const slide = (shown, label, value) => shown.getByLabel(label, { exact: true }).fill(String(value));

async function opened(id, settings) {
  return panel(browser, server.url, id, settings);
}

test("write: an answer is streamed, and each token shows its thought, the base beside it, and its draft", async () => {
  const { page, shown, run, ...rest } = await opened("write");
  await choose(shown, "Example", "It makes up problems");
  await page.evaluate(() => {
    const count = () => document.querySelectorAll("#panel-write .tokens .token").length;
    window.counts = new Set();
    new MutationObserver(() => window.counts.add(count())).observe(document.body, { subtree: true, childList: true });
  });
  await run();
  assert.ok((await page.evaluate(() => window.counts.size)) > 5); // it grew, and was not there at once
  await shown.locator(".tokens .changed").first().waitFor();
  assert.match(await text(shown.locator(".summary")), /\d+ tokens and \d+ hidden ones · .*tokens\/s · .*forwards\/token · \d+ % of drafts accepted$/);

  // The drafts that the page found rejected are those that the server's own books have.
  const accepted = /(\d+) % of drafts/.exec(await text(shown.locator(".summary")))[1];
  const [all, rejected] = [await tokens(shown).count(), await tokens(shown).and(shown.locator(".changed")).count()];
  assert.equal(Math.round(100 * (1 - rejected / (all - 1))), Number(accepted)); // the end is never drafted

  const inspector = shown.locator(".inspector");
  await shown.locator(".token:not(.changed)").first().hover();
  assert.equal(await text(inspector.locator(".draft")), "Draft accepted: the base alone says the same.");
  await tokens(shown).and(shown.locator(".changed")).last().hover();
  assert.match(await text(inspector), /Its thought[\s\S]*weight 0\.\d\d, \d+ tokens[\s\S]*Draft rejected: the base alone would have said/);
  assert.match(await text(inspector.locator("table")), /Base alone[\s\S]*Mixed[\s\S]*\d %/);
  await assertClean({ page, ...rest });
  await shoot(page, "playground-write");
});

test("write: tokens are tinted by their weight, and reached by keys alone", async () => {
  const { page, shown, ...rest } = await opened("write");
  await choose(shown, "Example", "A dial, three steps");
  await shown.getByLabel("Prompt").press("Control+Enter");
  await shown.locator(".tokens .changed").waitFor();
  const tint = (number) => tokens(shown).nth(number).evaluate((token) => getComputedStyle(token).backgroundColor);
  assert.notEqual(await tint(0), await tint(1));
  await tokens(shown).first().focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await text(shown.locator(".inspector h3")), /token 2 of 2/);
  assert.match(await page.locator(":focus").getAttribute("aria-label"), /endoftext.*thought: .*weight 0\.\d\d/);
  await page.keyboard.press("Home");
  assert.match(await page.locator(":focus").getAttribute("aria-label"), /^ 6, thought: Monday 6.*weight 0\.\d\d, draft rejected$/);
  await assertClean({ page, ...rest });
});

test("write: chat, several thoughts, and an error in the server's own words", async () => {
  const { page, shown, run, ...rest } = await opened("write");
  await choose(shown, "Example", "Four thoughts side by side");
  await radio(shown, "Chat").check();
  await run();
  await tokens(shown).first().click();
  assert.equal(await shown.locator(".inspector figure").count(), 4);
  await assertClean({ page, ...rest });

  await slide(shown, "Thought temperature", 0);
  await run();
  assert.match(await text(shown.locator("[role=alert]")), /^num_thoughts: /);
  assert.equal(rest.complaints.length, 1); // Chromium itself tells of the 400
});

test("write: a conversation goes on, and is forgotten", async () => {
  const { page, shown, run, ...rest } = await opened("write");
  await choose(shown, "Example", "Who has the ball?");
  await run();
  await shown.getByRole("button", { name: "Go on" }).click();
  await shown.getByLabel("Message").fill("Who had it first?");
  const sent = page.waitForRequest("**/v1/chat/completions");
  await run();
  const { messages } = (await sent).postDataJSON();
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.deepEqual(messages.slice(1).map(({ content }) => content), ["Fred", "Who had it first?"]);
  assert.match(await text(shown.locator(".history")), /You\s+Anna has the ball[\s\S]*Model\s+Fred/);
  await assertClean({ page, ...rest });
  await shown.getByRole("button", { name: "Forget" }).click();
  assert.equal(await shown.locator(".history").count(), 0);
});

test("write: a held token stays while others are pointed at", async () => {
  const { shown, run } = await opened("write");
  await run();
  const number = () => text(shown.locator(".inspector h3 span"));
  await tokens(shown).nth(3).hover();
  assert.match(await number(), /^token 4 /);
  await tokens(shown).nth(1).click();
  await tokens(shown).nth(3).hover();
  assert.match(await number(), /^token 2 /);
  await tokens(shown).nth(1).click();
  await tokens(shown).nth(3).hover();
  assert.match(await number(), /^token 4 /);
});

test("write: a long answer can be stopped", async () => {
  const { shown, page } = await opened("write");
  let asked = 0;
  await page.route("**/v1/completions", async (route) => (asked++ ? route.continue() : undefined)); // the first is never answered
  await shown.locator("button.primary").click();
  await shown.getByRole("button", { name: "Stop" }).click();
  await shown.locator("button.primary[aria-disabled=false]").waitFor();
  assert.equal(await shown.locator("[role=alert]").count(), 0);
  await shown.locator("button.primary").click();
  await tokens(shown).first().waitFor();
});

/** What a press on Copy puts into the clipboard. */
async function copied(page, calls) {
  await calls.getByRole("button", { name: "Copy" }).click();
  await calls.getByText("Copied.").waitFor();
  return page.evaluate(() => navigator.clipboard.readText());
}

function output(command, ...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", maxBuffer: 2 ** 26 });
  assert.equal(status, 0, stderr);
  return stdout;
}

for (const { id, example, curl, python } of [
  { id: "write", example: "A dial, three steps", curl: [/"text":" 6"/], python: [/text=' 6'/] },
  { id: "write", example: "Who has the ball?", curl: [/"content":" Fred"/], python: [/content=' Fred'/] },
  { id: "compare", example: "A dial, four steps", curl: [/"text":" [0-24-9]"/, /"text":" 3"/], python: [] },
  { id: "correct", example: "Signs for 2 5 3 6 6", curl: [/"turns_run":1/], python: [] },
  { id: "vote", example: "Signs for 2 5 3 6 6", curl: [/"num_samples":12/], python: [/'num_samples': 12/] },
  { id: "karel", example: "Round the walls", curl: [/"karel\.obstacle":\{.*"text":" move/], python: [/text=' move.*'karel\.obstacle': \{/] },
]) {
  test(`${id}: the calls to copy are what was asked, and work: ${example}`, async () => {
    const { page, shown, run } = await opened(id, { permissions: ["clipboard-read", "clipboard-write"] });
    await choose(shown, "Example", example);
    const sent = [];
    page.on("request", (request) => request.method() === "POST" && sent.push(request.postDataJSON()));
    await run();
    const calls = await shown.locator(".calls").all();
    assert.equal(calls.length, curl.length);
    for (const [number, one] of calls.entries()) {
      await one.locator("summary").click();
      const command = await copied(page, one);
      assert.deepEqual(JSON.parse(/-d '([\s\S]*)'$/.exec(command)[1]), sent[number]); // what the base is asked comes behind them
      assert.match(output("bash", "-c", command), curl[number]);
      if (!python[number]) continue;
      await radio(one, "Python").check();
      assert.match(output(`${dirname(COMMAND)}/python`, "-c", await copied(page, one)), python[number]);
    }
  });
}

test("compare: two depths with one seed, and where they part", async () => {
  const { page, shown, run, ...rest } = await opened("compare");
  await run();
  assert.match(await text(shown.locator(".verdict")), /^They part at token 1; 1 on the left and 1 on the right/);
  const [left, right] = [shown.locator(".sides > div").nth(0), shown.locator(".sides > div").nth(1)];
  assert.match(await text(left.locator("h3")), /Depth 0/);
  assert.match(await text(right.locator("h3")), /Depth 12/);
  assert.equal((await text(tokens(right).first())).trim(), "3"); // the right answer, which needs four steps
  assert.notEqual((await text(tokens(left).first())).trim(), "3");
  assert.deepEqual(await shown.locator(".token.differs").count(), 2);
  await tokens(right).first().click();
  const inspector = shown.locator(".inspector");
  assert.match(await text(inspector), /Monday 7 Tuesday 2 Wednesday 6 Thursday 3/);
  assert.equal(await text(inspector.locator(".draft")), `Draft rejected: the base alone would have said ␣${(await text(tokens(left).first())).trim()}.`);
  assert.match(await text(inspector.locator("table")), /Base alone[\s\S]*Mixed/);
  await assertClean({ page, ...rest });
  await shoot(page, "playground-compare");
  await tokens(left).first().click();
  assert.equal(await text(inspector.locator(".draft")), "It did not think: this is the base’s own choice.");

  await slide(shown, "Left: thought depth", 12);
  await run();
  assert.equal(await text(shown.locator(".verdict")), "Both say the same, token for token.");
  assert.equal(await shown.locator(".token.differs").count(), 0);
});

test("correct: both attempts, and the words between them", async () => {
  const { page, shown, run, ...rest } = await opened("correct");
  await run();
  assert.equal(await shown.locator(".attempts li").count(), 2);
  const [first, second] = [await text(shown.locator(".attempt").nth(0)), shown.locator(".attempt").nth(1)];
  const without = (tag) => second.evaluate((node, name) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll(name).forEach((one) => one.remove());
    return copy.textContent.trim().split(/\s+/).join(" ");
  }, tag);
  assert.equal(await without("ins"), first); // what was there before is the first attempt
  assert.match(await without("del"), / 0$/); // and what is there now leaves nothing
  assert.notEqual(first, await without("del"));
  await assertClean({ page, ...rest });
  await shoot(page, "playground-correct");
});

test("vote: a bar for each answer, its samples, and the ranker's scores", async () => {
  const { page, shown, run, ...rest } = await opened("vote");
  await run();
  assert.match(await text(shown.locator(".verdict")), /wins with \d+ % of the weight, from \d+ of 12 answers/);
  const groups = shown.locator(".groups > li");
  const shares = await groups.locator(".tally .bar > span").evaluateAll((bars) => bars.map((bar) => parseFloat(bar.style.width)));
  assert.ok(shares.length > 1);
  assert.deepEqual(shares, shares.toSorted((one, other) => other - one));
  assert.ok(Math.abs(shares.reduce((sum, share) => sum + share) - 100) < 0.1);
  const winner = groups.first();
  await winner.locator("summary").click();
  const [, voters] = /(\d+) of 12 · score 1\.00/.exec(await text(winner.locator(".tally")));
  assert.equal(await winner.locator("tbody tr").count(), Number(voters));
  await assertClean({ page, ...rest });
  await shoot(page, "playground-vote");

  await radio(shown, "Majority").check();
  assert.equal(await shown.getByRole("combobox", { name: "Ranker" }).count(), 0);
  await choose(shown, "What counts as its answer", "boxed");
  await run();
  assert.match(await text(shown.locator(".verdict")), /^None of 12 answers/);
  assert.match(await text(shown.locator(".groups")), /No answer was found in 12/);
});

test("karel: the worlds drawn, the program stepped through, the probe against the truth", async () => {
  const { page, shown, run, ...rest } = await opened("karel");
  assert.equal(await shown.locator(".grid").count(), 6); // before anything is asked
  await run();
  assert.equal(await text(shown.locator(".verdict")), "The program does what is wanted in every world.");
  const rows = shown.locator(".steps tbody tr");
  const [agree, all] = [await rows.locator(".right").count(), await rows.count()];
  assert.match(await text(shown.locator("caption")), new RegExp(`: ${agree} of ${all} right$`));

  const now = shown.locator(".worlds li").first().locator(".grid").first();
  assert.match(await now.getAttribute("aria-label"), /^Now: the robot on row 2 column 0 facing north/);
  await shown.getByRole("button", { name: "Step", exact: true }).click();
  assert.match(await now.getAttribute("aria-label"), /^Now: the robot on row 1 column 0 facing north/);
  assert.equal(await rows.first().getAttribute("aria-current"), "step");
  await rows.nth(2).getByRole("button").click();
  await assertClean({ page, ...rest });
  await shoot(page, "playground-karel");
  await shown.getByRole("button", { name: "Play" }).click();
  await shown.getByText(`After step ${all} of ${all}`, { exact: false }).waitFor();
  assert.equal(await shown.getByText("as wanted", { exact: true }).count(), 3);

  await shown.getByLabel("Worlds").fill("4x4 @r9c0N");
  assert.match(await text(shown.locator("form")), /“@r9c0N” is no place in a world of 4 by 4 cells/);
});

/** Has a page take the server's probe for another one, whose readouts are all the same. */
async function pretend(page, probe, readout) {
  await page.route("**/v1/models", async (route) => {
    const models = await (await route.fetch()).json();
    for (const { capabilities } of models.data) Object.assign(capabilities.probes[0] ?? {}, probe);
    await route.fulfill({ json: models });
  });
  await page.route("**/v1/completions", async (route) => {
    const reply = await (await route.fetch()).json();
    for (const { readouts } of reply.choices[0].probes) for (const name of Object.keys(readouts)) readouts[name] &&= readout;
    await route.fulfill({ json: reply });
  });
  await page.reload();
}

for (const [offset, words] of [[0, ""], [1, ", one step later"], [-2, ", 2 steps earlier"]]) {
  test(`karel: a probe of turns is held against the step that it speaks of: ${offset}`, async () => {
    const { page, shown, run, ...rest } = await opened("karel");
    await pretend(page, { property: "turned", classes: ["left", "not", "right", "round"], offset }, { class: "not", probability: 0.5 });
    await run();
    const rows = shown.locator(".steps tbody tr");
    const operations = await rows.locator("code").allInnerTexts();
    const turns = operations.map((_, number) => operations.slice(0, number + 1).reduce((sum, one) => sum + ({ right: 1, left: 3 }[one] ?? 0), 0));
    const truths = operations.map((_, number) => ["not", "right", "round", "left"][turns[number + offset] % 4]);
    const shows = truths.map((truth) => (truth === undefined ? /^no such step: / : truth === "not" ? /^not ✓/ : new RegExp(`^${truth} ✗`)));
    const cells = await rows.locator("td:last-child").allInnerTexts();
    cells.forEach((cell, number) => assert.match(cell, shows[number]));
    const [judged, right] = [truths.filter(Boolean).length, truths.filter((truth) => truth === "not").length];
    assert.equal(judged, operations.length - Math.abs(offset));
    assert.ok(right > 0 && right < judged);
    assert.match(await text(shown.locator("caption")), new RegExp(`“turned”${words}, and what is so in world 1: ${right} of ${judged} right$`));
    await assertClean({ page, ...rest });
  });
}

test("live: the figures of /metrics move with what is done", async () => {
  const { page, shown, run, ...rest } = await opened("write");
  const figure = (name) => page.locator(".live div", { hasText: name }).locator("dd");
  await run();
  await page.waitForFunction(() => document.querySelector(".live .curve polyline")?.getAttribute("points").split(" ").some((point) => Number(point.split(",")[1]) < 17));
  assert.match(await text(figure("forwards/token")), /^\d+\.\d\d$/);
  assert.match(await text(figure("drafts accepted")), /^\d+(\.\d)? %$/);
  assert.equal(await text(figure("waiting")), "0");
  await assertClean({ page, ...rest });
});

test("live: what runs and waits is what /metrics says", async () => {
  const { page } = await opened("write");
  await page.route("**/metrics", async (route) => {
    const lines = (await (await route.fetch()).text()).split("\n").filter((line) => !/^quietserve_num_requests_(running|waiting)[ {]/.test(line));
    const gauges = ["running 3", "waiting 5"].map((gauge) => `quietserve_num_requests_${gauge}`);
    await route.fulfill({ body: [...lines, ...gauges, ""].join("\n") });
  });
  for (const [name, value] of [["running", "3"], ["waiting", "5"]]) {
    await page.locator(".live div", { hasText: name }).locator("dd", { hasText: value }).waitFor();
  }
  await page.unrouteAll({ behavior: "ignoreErrors" }); // the page goes on asking
});

test("tabs go by arrow keys, and have an address", async () => {
  const { page } = await opened("vote");
  await page.getByRole("tab", { name: "Vote" }).press("ArrowRight");
  assert.equal(await page.locator(":focus").innerText(), "Karel");
  assert.equal(new URL(page.url()).hash, "#karel");
  await page.keyboard.press("ArrowRight");
  await page.locator("#panel-write").waitFor();
});

for (const [name, settings] of [["phone", { width: 360 }], ["dark", { colorScheme: "dark" }]]) {
  test(`every panel is clean: ${name}`, async () => {
    for (const id of ["write", "compare", "correct", "vote", "karel"]) {
      const { page, shown, run, close, ...rest } = await opened(id, settings);
      await run();
      const top = await shown.locator(".result").evaluate((result) => result.getBoundingClientRect().top / innerHeight);
      assert.ok(top >= 0 && top < 0.6, `the result of ${id} begins ${top} windows down`);
      if (id === "write") await tokens(shown).first().click();
      if (id === "write") await shoot(page, `playground-${name}`);
      for (const calls of await shown.locator(".calls summary").all()) await calls.click();
      await assertClean({ page, ...rest });
      await close();
    }
  });
}
