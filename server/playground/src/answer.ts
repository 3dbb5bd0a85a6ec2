// An answer as it comes: its tokens with their thoughts, and what it took. Both endpoints stream into the same shape.

import { type Body, post, stream } from "./api";

export interface Choice {
  text: string;
  logprob: number;
}

export interface Thought {
  position: number;
  thought: string;
  token_ids: number[];
  mixing_weight: number;
}

export interface Token {
  id: number;
  text: string;
  top: Choice[]; // of the mixed distribution
  thoughts: Thought[];
}

/** What the base model would say at one place, without a thought, by the same noise. */
export interface Base {
  draft: number;
  text: string;
  top: Choice[];
}

export interface Timings {
  tokens_per_second?: number;
  forwards_per_token?: number;
  acceptance_rate?: number;
  time_to_first_output_token_ms?: number;
}

export interface Answer {
  prompt: number[];
  text: string;
  tokens: Token[];
  finish: string | null;
  hidden: number; // thought tokens
  timings: Timings;
  warnings: string[];
}

export const NOTHING: Answer = { prompt: [], text: "", tokens: [], finish: null, hidden: 0, timings: {}, warnings: [] };

/* What a reply or an event holds, as far as we read it. */
interface Event {
  choices: {
    text?: string;
    delta?: { content: string };
    finish_reason: string | null;
    token_ids?: number[];
    thoughts?: Thought[];
    prompt_token_ids?: number[];
    logprobs: CompletionLogprobs | ChatLogprobs | null;
  }[];
  prompt_token_ids?: number[];
  metrics?: Timings;
  usage?: { completion_tokens_details: { reasoning_tokens: number } } | null;
  warnings?: string[];
}

interface CompletionLogprobs {
  tokens: string[];
  top_logprobs: (Record<string, number> | null)[];
}

interface ChatLogprobs {
  content: { token: string; top_logprobs: { token: string; logprob: number }[] }[];
}

const NUM_CHOICES = 5;
const AT_ONCE = 16; // places that the base is asked about in one request

/** The fields that have the server tell what this page shows of each token. */
export function told(chat: boolean): Body {
  const logprobs: Body = chat ? { logprobs: true, top_logprobs: NUM_CHOICES } : { logprobs: NUM_CHOICES };
  return {
    ...logprobs,
    return_thoughts: true,
    return_token_ids: true,
    stream_options: { include_usage: true },
  };
}

/** The answer so far, once for each event. */
export async function* answers(path: string, body: Body, signal: AbortSignal): AsyncGenerator<Answer> {
  let answer = NOTHING;
  for await (const event of stream<Event>(path, body, signal)) yield (answer = joined(answer, event));
}

function joined(answer: Answer, event: Event): Answer {
  const choice = event.choices[0];
  return {
    prompt: choice?.prompt_token_ids ?? event.prompt_token_ids ?? answer.prompt,
    text: answer.text + (choice?.text ?? choice?.delta?.content ?? ""),
    tokens: choice ? [...answer.tokens, ...tokens(choice, answer.tokens.length)] : answer.tokens,
    finish: choice?.finish_reason ?? answer.finish,
    hidden: event.usage?.completion_tokens_details.reasoning_tokens ?? answer.hidden,
    timings: event.metrics ?? answer.timings,
    warnings: event.warnings ?? answer.warnings,
  };
}

function tokens(choice: Event["choices"][number], first: number): Token[] {
  const texts = tops(choice.logprobs);
  return (choice.token_ids ?? []).map((id, i) => ({
    id,
    text: texts[i]?.text ?? "",
    top: texts[i]?.top ?? [],
    thoughts: (choice.thoughts ?? []).filter((thought) => thought.position === first + i),
  }));
}

function tops(logprobs: CompletionLogprobs | ChatLogprobs | null): { text: string; top: Choice[] }[] {
  if (!logprobs) return [];
  if ("content" in logprobs) {
    return logprobs.content.map(({ token, top_logprobs }) => ({
      text: token,
      top: top_logprobs.map(({ token: text, logprob }) => ({ text, logprob })),
    }));
  }
  return logprobs.tokens.map((text, i) => ({ text, top: choices(logprobs.top_logprobs[i] ?? {}) }));
}

function choices(top: Record<string, number>): Choice[] {
  return Object.entries(top).map(([text, logprob]) => ({ text, logprob }));
}

/**
 * What the base would have said at each place of an answer, had all before it been the same: the text up to there is given
 * as a prompt, and one token is drawn without thinking. Noise belongs to a seed and a place, so that token is the draft.
 * All that is known so far, once for each request.
 */
export async function* bases(body: Body, answer: Answer, signal: AbortSignal): AsyncGenerator<Base[]> {
  let known: Base[] = [];
  for (let first = 0; first < answer.tokens.length; first += AT_ONCE) {
    known = [...known, ...(await ask(body, answer, first, signal))];
    yield known;
  }
}

async function ask(body: Body, answer: Answer, first: number, signal: AbortSignal): Promise<Base[]> {
  const ids = answer.tokens.map((token) => token.id);
  const { model, temperature, seed } = body as { model: string; temperature: number; seed: number };
  const prompt = ids.slice(first, first + AT_ONCE).map((_, i) => [...answer.prompt, ...ids.slice(0, first + i)]);
  const asked = { model, temperature, seed, prompt, max_tokens: 1, thought_depth: 0, logprobs: NUM_CHOICES, return_token_ids: true };
  const reply = await post<Event>("v1/completions", asked, signal);
  return reply.choices.map((choice) => {
    const { text, top } = tops(choice.logprobs)[0]!;
    return { draft: choice.token_ids![0]!, text, top };
  });
}

/** Whether any of its tokens had a thought. */
export function didThink({ tokens }: Answer): boolean {
  return tokens.some(({ thoughts }) => thoughts.length);
}

/** The share that thoughts had in a token; null where there was none. */
export function weight(token: Token): number | null {
  if (!token.thoughts.length) return null;
  return token.thoughts.reduce((sum, thought) => sum + thought.mixing_weight, 0) / token.thoughts.length;
}
