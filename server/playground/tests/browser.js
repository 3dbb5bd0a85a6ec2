// A real server and a real Chromium. QUIETSERVE names the command, CHROMIUM the browser, SCREENSHOTS a folder for pictures.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createInterface } from "node:readline";
import AxeBuilder from "@axe-core/playwright";
import { chromium } from "playwright-core";

export const COMMAND = process.env.QUIETSERVE ?? new URL("../../../.venv/bin/quietserve", import.meta.url).pathname;
const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";
const { SCREENSHOTS } = process.env;

export const ALL = ["quiet-small", "--also", "score-small", "--also", "karel-small", "--ranker", "score-ranker=score-ranker", "--probe", "karel.obstacle=karel-obstacle"];
export const MODELS_MS = 60_000; // until a page has its models: a server loads them first

/** A server on a free port; `stop` ends it. */
export async function serve(...flags) {
  const server = spawn(COMMAND, ["serve", "--port", "0", "--log-level", "warning", ...flags], { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: server.stdout })) {
    const url = /http:\/\/\S+:\d+/.exec(line)?.[0];
    if (url) return { url: `${url}/`, stop: () => stopped(server) };
  }
  throw new Error(`${COMMAND} serve did not start`);
}

function stopped(server) {
  const ended = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGTERM");
  return ended;
}

export const launch = () => chromium.launch({ executablePath: EXECUTABLE, args: ["--no-sandbox"] }); // no sandbox: CI may be root

/** A page at an address, and what its console and its requests complained of. */
export async function open(browser, address, { width = 1200, height = 800, prepare, ...settings } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, reducedMotion: "reduce", ...settings });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  const complaints = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => new URL(request.url()).origin === new URL(address).origin || complaints.push(request.url()));
  if (prepare) await page.addInitScript(prepare);
  await page.goto(address);
  return { page, complaints, close: () => context.close() };
}

/** One tab of the page. */
export async function panel(browser, url, id, settings) {
  const opened = await open(browser, `${url}#${id}`, settings);
  const shown = opened.page.locator(`#panel-${id}`);
  await shown.waitFor({ timeout: MODELS_MS });
  return { ...opened, shown, run: () => ran(shown) };
}

async function ran(shown) {
  await shown.locator("button.primary").click();
  await shown.locator("section[aria-busy=true]").waitFor({ state: "detached" });
  await shown.locator("button.primary[aria-disabled=false]").waitFor();
}

/** Nothing was complained of, by the console or by axe, and nothing is wider than the window. */
export async function assertClean({ page, complaints }) {
  assert.deepEqual(complaints, []);
  const { violations } = await new AxeBuilder({ page }).analyze();
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), []);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page is wider than the window");
}

/** Kept where somebody asks for pictures. */
export async function shoot(page, name) {
  if (!SCREENSHOTS) return;
  mkdirSync(SCREENSHOTS, { recursive: true });
  await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });
}
