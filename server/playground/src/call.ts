// A request as one would write it elsewhere: with curl, or with OpenAI's Python package.

import type { Body, Json } from "./api";

export const VARIABLE = "QUIETSERVE_API_KEY";

// What OpenAI's package has arguments for; everything else goes through extra_body.
const SHARED = ["model", "max_tokens", "temperature", "top_p", "seed", "stream", "stream_options", "logprobs", "n", "stop"];
const OWN = { "v1/completions": ["prompt", "best_of"], "v1/chat/completions": ["messages", "top_logprobs"] };

export type Path = keyof typeof OWN;

export function curl(url: string, path: Path, body: Body, guarded: boolean): string {
  const key = guarded ? ` \\\n  -H "Authorization: Bearer $${VARIABLE}"` : "";
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  return `curl${body.stream ? " -N" : ""} ${url}${path} -H 'Content-Type: application/json'${key} -d '${quoted}'`;
}

export function python(url: string, path: Path, body: Body, guarded: boolean): string {
  const known = [...SHARED, ...OWN[path]];
  const named = Object.entries(body).filter(([name]) => known.includes(name));
  const extra = Object.entries(body).filter(([name]) => !known.includes(name));
  const values = named.map(([name, value]) => `    ${name}=${literal(value, 4)},\n`).join("");
  const rest = extra.length ? `    extra_body=${literal(Object.fromEntries(extra), 4)},\n` : "";
  const key = guarded ? `os.environ["${VARIABLE}"]` : '"none"';
  const call = path === "v1/completions" ? "completions" : "chat.completions";
  const shown = body.stream ? "for event in reply:\n    print(event)" : "print(reply)";
  return (
    `${guarded ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url="${url}v1", api_key=${key})\n` +
    `reply = client.${call}.create(\n${values}${rest})\n${shown}\n`
  );
}

/** JSON as Python writes it. */
function literal(value: Json, indent: number): string {
  const inner = " ".repeat(indent + 4);
  const closed = (open: string, lines: string[], close: string) =>
    lines.length ? `${open}\n${lines.map((line) => `${inner}${line},\n`).join("")}${" ".repeat(indent)}${close}` : open + close;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return closed("[", value.map((item) => literal(item, indent + 4)), "]");
  const entries = Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
  return closed("{", entries, "}");
}
