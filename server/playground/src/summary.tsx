// What an answer took, in one line that screen readers are told when it is there.

import type { Answer } from "./answer";
import { percent } from "./tokens";

export function Summary({ answer, busy }: { answer: Answer; busy: boolean }) {
  return <p class="summary" role="status">{busy ? <span class="thinking">Thinking</span> : told(answer)}</p>;
}

function told(answer: Answer) {
  return <>{answer.text && <span class="unseen">The answer: {answer.text}</span>} {describe(answer)}</>;
}

function describe({ tokens, hidden, finish, timings }: Answer): string {
  if (!tokens.length) return "";
  const { tokens_per_second, forwards_per_token, acceptance_rate, time_to_first_output_token_ms } = timings;
  return [
    `${tokens.length} tokens${hidden ? ` and ${hidden} hidden ones` : ""}`,
    time_to_first_output_token_ms && `first after ${Math.round(time_to_first_output_token_ms)} ms`,
    tokens_per_second && `${tokens_per_second.toFixed(1)} tokens/s`,
    forwards_per_token && `${forwards_per_token.toFixed(2)} forwards/token`,
    acceptance_rate !== undefined && `${percent(acceptance_rate)} of drafts accepted`,
    finish === "length" && "cut off at most tokens",
    finish === null && "stopped",
  ].filter(Boolean).join(" · ");
}
