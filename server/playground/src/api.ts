// Asks the server this page came from. Addresses are relative, so that a proxy may put the server below any path.

export interface Probe {
  name: string;
  property: string;
  classes: string[];
  offset: number; // of the step that it speaks of, in steps from the one that the state chose
}

export interface Model {
  id: string;
  parent: string | null;
  max_model_len: number;
  capabilities: {
    thinking: boolean;
    max_thought_depth: number;
    max_num_thoughts: number;
    max_best_of: number;
    max_self_correction_turns: number;
    self_correction: boolean;
    rankers: string[];
    probes: Probe[];
  };
}

export type Json = string | number | boolean | null | Json[] | { [name: string]: Json };
export type Body = Record<string, Json>;

/** What the server says went wrong, in its own words. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

const KEY = "quietserve-api-key";

/** The key is kept until the tab is closed, and goes nowhere but to this server. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value: string) => sessionStorage.setItem(KEY, value),
};

let onRefused = () => {};

/** Have something done whenever the key is missing or wrong. */
export function whenRefused(ask: () => void) {
  onRefused = ask;
}

export async function get(path: string): Promise<Response> {
  return ask(path, { method: "GET" });
}

export async function post<T>(path: string, body: Body, signal?: AbortSignal): Promise<T> {
  const reply = await ask(path, asPost(body, signal));
  return reply.json();
}

/** The events of a stream, as they come. */
export async function* stream<T>(path: string, body: Body, signal: AbortSignal): AsyncGenerator<T> {
  const reply = await ask(path, asPost({ ...body, stream: true }, signal));
  for await (const data of events(reply.body!)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, reply.status, event.error.code, event.error.param);
    yield event;
  }
  throw new ApiError("The server's answer broke off.", 0, "connection");
}

/** The data of server-sent events; comments are passed over. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += decoder.decode(value, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop()!;
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice("data: ".length);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function asPost(body: Body, signal?: AbortSignal): RequestInit {
  return { method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" } };
}

async function ask(path: string, init: RequestInit): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  let reply: Response;
  try {
    reply = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0, "connection");
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  const { message, code, param } = told.error ?? {};
  if (reply.status === 401) onRefused();
  throw new ApiError(message ?? `The server answered ${reply.status}.`, reply.status, code ?? "", param);
}

/** One line for a person; null where they ended it themselves. */
export function describe(error: unknown): string | null {
  if (error instanceof DOMException && error.name === "AbortError") return null;
  if (error instanceof ApiError) return error.param ? `${error.param}: ${error.message}` : error.message;
  return String(error);
}
