// What /metrics says, summed over models, and how fast that changes.

export interface Sample {
  at: number; // seconds
  visible: number; // tokens decoded since the server began
  hidden: number;
  forwards: number; // of forwards/token, the sum over requests that think
  requests: number; // and how many those were
  accepted: number; // drafts
  rejected: number;
  running: number;
  waiting: number;
}

export interface Rates {
  visible: number; // tokens a second
  hidden: number;
  forwards: number | null; // a token; null where nothing has ended
  accepted: number | null; // share of drafts
  running: number;
  waiting: number;
}

const PREFIX = "quietserve_";
const OFF = 'thinking="off"';
const THOUGHT = 'kind="thought"';

export function readMetrics(text: string, at: number): Sample {
  const lines = text.split("\n");
  const sum = (name: string, label = "") =>
    lines
      .filter((line) => [" ", "{"].some((next) => line.startsWith(PREFIX + name + next)) && line.includes(label))
      .reduce((total, line) => total + Number(line.slice(line.lastIndexOf(" "))), 0);
  return {
    at,
    visible: sum("generation_tokens_total") - sum("generation_tokens_total", THOUGHT),
    hidden: sum("generation_tokens_total", THOUGHT),
    forwards: sum("forwards_per_token_sum") - sum("forwards_per_token_sum", OFF),
    requests: sum("forwards_per_token_count") - sum("forwards_per_token_count", OFF),
    accepted: sum("speculative_tokens_total", 'outcome="accepted"'),
    rejected: sum("speculative_tokens_total", 'outcome="rejected"'),
    running: sum("num_requests_running"),
    waiting: sum("num_requests_waiting"),
  };
}

/** Between two samples; a server that was started anew between them has counted from nothing. */
export function rates(before: Sample, now: Sample): Rates {
  const seconds = now.at - before.at;
  const grown = (name: keyof Sample) => Math.max(0, now[name] - before[name]);
  const share = (part: number, whole: number) => (whole ? part / whole : null);
  return {
    visible: seconds ? grown("visible") / seconds : 0,
    hidden: seconds ? grown("hidden") / seconds : 0,
    forwards: share(grown("forwards"), grown("requests")),
    accepted: share(grown("accepted"), grown("accepted") + grown("rejected")),
    running: now.running,
    waiting: now.waiting,
  };
}
