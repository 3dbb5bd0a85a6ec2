// Who may see what: the key, a server with other models, and browsers that lack something.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { MODELS_MS, assertClean, launch, open, panel, serve, shoot } from "./browser.js";

const KEY = "s3cret-key";
let server, browser;
before(async () => {
  const preset = `brief={"max_tokens": 3, "thought_depth": 4}`;
  server = await serve("--api-key", KEY, "--model-preset", preset); // first: a browser that nothing closes keeps this process from ending
  browser = await launch();
});
after(() => Promise.all([server?.stop(), browser?.close()]));

const refusals = (complaints) => complaints.filter((complaint) => !complaint.includes("401"));

test("a page without the key asks for it, again where it is wrong, and keeps it for the tab", async () => {
  const { page, complaints } = await open(browser, server.url);
  const dialog = page.getByRole("dialog");
  await dialog.waitFor();
  await shoot(page, "playground-key");
  for (const id of ["app.js", "app.css"]) assert.ok(!(await (await page.request.get(`${server.url}playground/${id}`)).text()).includes(KEY));
  assert.equal(await dialog.getByRole("alert").isVisible(), false);
  await dialog.getByLabel("API key").fill("wrong");
  await page.keyboard.press("Enter");
  await dialog.getByText("That key is not valid.").waitFor();
  for (let times = 0; times < 3; times++) await page.keyboard.press("Escape"); // Chromium lets a second one close it
  await dialog.waitFor();
  await dialog.getByLabel("API key").fill("schlüssel");
  await page.keyboard.press("Enter");
  assert.ok(await dialog.getByLabel("API key").evaluate((input) => input.matches(":invalid"))); // no header can hold it
  await assertClean({ page, complaints: refusals(complaints) });

  await dialog.getByLabel("API key").fill(KEY);
  await page.keyboard.press("Enter");
  await page.getByRole("tab", { name: "Write" }).waitFor({ timeout: MODELS_MS });
  assert.equal(await dialog.count(), 0);
  const shown = page.locator("#panel-write");
  await shown.locator("button.primary").click();
  await shown.locator(".token").first().waitFor();
  await shown.locator(".calls summary").click();
  const call = await shown.locator(".calls pre").innerText();
  assert.ok(call.includes("Bearer $QUIETSERVE_API_KEY") && !call.includes(KEY)); // what is copied holds no secret
  assert.ok(!page.url().includes(KEY));

  await page.reload();
  await page.getByRole("tab", { name: "Write" }).waitFor();
  await page.evaluate(() => sessionStorage.setItem("quietserve-api-key", "revoked"));
  await page.reload();
  await dialog.getByText("That key is not valid.").waitFor();
});

test("a preset leaves its settings to the server, and panels say what they would need", async () => {
  const prepare = `sessionStorage.setItem("quietserve-api-key", "${KEY}")`;
  const { page, shown, run, ...rest } = await panel(browser, server.url, "write", { prepare });
  await shown.getByLabel("Model").selectOption("brief");
  assert.match(await shown.locator("form").innerText(), /A preset brings its own settings/);
  await run();
  assert.equal(await shown.locator(".tokens .token").count(), 3);
  await page.getByRole("tab", { name: "Karel" }).click();
  assert.match(await page.locator("#panel-karel").innerText(), /--also karel-small/);
  await assertClean({ page, ...rest });
});

test("a server that is gone is told, and looked for again", async () => {
  const prepare = "window.realFetch = fetch; window.fetch = () => Promise.reject(new TypeError('away'))";
  const { page } = await open(browser, server.url, { prepare });
  await page.getByText("The server cannot be reached.").waitFor();
  await page.evaluate(() => (window.fetch = window.realFetch));
  await page.getByRole("button", { name: "Try again" }).click();
  await page.getByRole("dialog").waitFor();
});

test("a server that loads its model is asked until it has it", async () => {
  const { page } = await open(browser, server.url);
  let left = 2;
  const error = { message: "The model is being loaded.", type: "server_error", param: null, code: "model_loading" };
  await page.route("**/v1/models", (route) => (left-- > 0 ? route.fulfill({ status: 503, json: { error } }) : route.continue()));
  await page.evaluate((key) => sessionStorage.setItem("quietserve-api-key", key), KEY);
  await page.reload();
  await page.getByText("The model is being loaded.").waitFor();
  await page.getByRole("tab", { name: "Write" }).waitFor();
  assert.equal(left, -1);
});

for (const [what, prepare] of [
  ["readable streams", "delete window.ReadableStream"],
  ["dialogs", "delete window.HTMLDialogElement"],
  ["mixed colours", "CSS.supports = () => false"],
  ["session storage", "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError') } })"],
]) {
  test(`a browser without ${what} is told so`, async () => {
    const { page, complaints } = await open(browser, server.url, { prepare });
    await page.getByText(`This page needs a newer browser: yours has no ${what}.`).waitFor();
    assert.deepEqual(complaints, []);
  });
}

test("a browser without JavaScript is told so", async () => {
  const { page } = await open(browser, server.url, { javaScriptEnabled: false });
  assert.match(await page.innerText("main"), /This page needs JavaScript/);
});
