// An answer token by token, tinted by how much its thoughts weighed; and what is known of one of them.

import { useRef, useState } from "preact/hooks";
import { type Answer, type Base, type Choice, type Token, didThink, weight } from "./answer";

export function percent(share: number): string {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

/** A token's text where a line break, or white space alone, would not be seen. */
function visible(text: string): string {
  return text.trim() ? text : text.replaceAll("\n", "↵").replaceAll(" ", "␣") || "∅";
}

/** The same by itself, where the space that it begins with would not be seen either. */
const alone = (text: string) => visible(text).replace(/^ /, "␣");

/** Whether thinking is known to have turned the base's draft into another token. */
export function changed(token: Token, base: Base | undefined): boolean {
  return base !== undefined && base.draft !== token.id;
}

function described(token: Token, base: Base | undefined, mark: string): string {
  const own = weight(token);
  const thoughts = token.thoughts.map((thought) => `thought: ${thought.thought.trim()}`);
  const told = [token.text, ...thoughts, own !== null && `weight ${own.toFixed(2)}`, changed(token, base) && "draft rejected", mark];
  return told.filter(Boolean).join(", ");
}

export function Tokens({ answer, bases = [], marked = [], mark = "", picked, pick, label }: {
  answer: Answer;
  bases?: Base[];
  marked?: boolean[];
  mark?: string; // what being marked means
  picked: number | null;
  pick: (number: number) => void;
  label: string;
}) {
  const group = useRef<HTMLDivElement>(null);
  const [held, hold] = useState<number | null>(null); // what is pointed at changes nothing while one is held
  const press = (number: number) => {
    hold(held === number ? null : number);
    pick(number);
  };
  const point = (number: number) => (held === null || held !== picked) && pick(number);
  const last = answer.tokens.length - 1;
  const reachable = Math.min(picked ?? 0, last);
  const move = (event: KeyboardEvent) => {
    const steps: Record<string, number> = { ArrowRight: reachable + 1, ArrowLeft: reachable - 1, Home: 0, End: last };
    const to = steps[event.key];
    if (to === undefined || to < 0 || to > last) return;
    event.preventDefault();
    (group.current!.children[to] as HTMLElement).focus();
  };
  return (
    <div class="tokens" role="group" aria-label={label} ref={group} onKeyDown={move}>
      {answer.tokens.map((token, number) => (
        <button
          type="button" key={number} tabIndex={number === reachable ? 0 : -1} aria-current={number === picked}
          class={["token", changed(token, bases[number]) && "changed", marked[number] && "differs"].filter(Boolean).join(" ")}
          style={{ "--weight": weight(token) ?? 0 }} aria-label={described(token, bases[number], marked[number] ? mark : "")}
          onFocus={() => pick(number)} onClick={() => press(number)}
          onPointerEnter={(event) => event.pointerType === "mouse" && point(number)}
        >
          {visible(token.text)}
        </button>
      ))}
    </div>
  );
}

export function Legend({ changes }: { changes: boolean }) {
  return (
    <p class="legend">
      <span class="scale" aria-hidden="true" /> The deeper the tint, the more its thoughts weighed.
      {changes && <> <span class="token changed" aria-hidden="true">like this</span> thinking rejected the base’s draft.</>}
    </p>
  );
}

export function Inspector({ answer, number, base }: { answer: Answer; number: number; base: Base | undefined }) {
  const missing = didThink(answer) ? "What the base alone would have said is not known yet." : "It did not think: this is the base’s own choice.";
  const token = answer.tokens[number]!;
  return (
    <section class="inspector" aria-label="One token">
      <h3>
        <code>{alone(token.text)}</code> <span>token {number + 1} of {answer.tokens.length}</span>
      </h3>
      <div class="columns">
        <Thoughts token={token} />
        <div>
          <Draft token={token} base={base} missing={missing} />
          <Choices mixed={token.top} base={base?.top} />
        </div>
      </div>
    </section>
  );
}

function Thoughts({ token }: { token: Token }) {
  if (!token.thoughts.length) return <p class="thoughts">No thought came before it.</p>;
  return (
    <div class="thoughts">
      <h4>{token.thoughts.length === 1 ? "Its thought" : `Its ${token.thoughts.length} thoughts`}</h4>
      {token.thoughts.map((thought, number) => (
        <figure key={number}>
          <blockquote>{thought.thought.trim() || "(nothing)"}</blockquote>
          <figcaption>
            <Bar share={thought.mixing_weight} /> weight {thought.mixing_weight.toFixed(2)}, {thought.token_ids.length} tokens
          </figcaption>
        </figure>
      ))}
    </div>
  );
}

function Draft({ token, base, missing }: { token: Token; base: Base | undefined; missing: string }) {
  if (!base) return <p class="draft">{missing}</p>;
  if (!changed(token, base)) return <p class="draft">Draft <strong>accepted</strong>: the base alone says the same.</p>;
  return (
    <p class="draft">
      Draft <strong class="rejected">rejected</strong>: the base alone would have said <code>{alone(base.text)}</code>.
    </p>
  );
}

const MOST_ROWS = 6;

function Choices({ mixed, base }: { mixed: Choice[]; base: Choice[] | undefined }) {
  const likeliest = (text: string) => Math.max(...[...mixed, ...(base ?? [])].map((choice) => (choice.text === text ? choice.logprob : -Infinity)));
  const texts = [...new Set([...mixed, ...(base ?? [])].map(({ text }) => text))].sort((one, other) => likeliest(other) - likeliest(one));
  return (
    <table class="choices">
      <caption>Likeliest tokens here</caption>
      <thead>
        <tr><th scope="col">Token</th>{base && <th scope="col">Base alone</th>}<th scope="col">{base ? "Mixed" : "Probability"}</th></tr>
      </thead>
      <tbody>
        {texts.slice(0, MOST_ROWS).map((text) => (
          <tr key={text}>
            <th scope="row"><code>{alone(text)}</code></th>
            {base && <Share choices={base} text={text} kind="base" />}
            <Share choices={mixed} text={text} kind="mixed" />
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** How likely it is; of one that is not among the likeliest it is known that it is no likelier than the last of them. */
function Share({ choices, text, kind }: { choices: Choice[]; text: string; kind: string }) {
  const found = choices.find((choice) => choice.text === text);
  const share = Math.exp(found?.logprob ?? Math.min(...choices.map(({ logprob }) => logprob)));
  if (!found) return <td class={kind}>{share < 0.0005 ? percent(share) : `at most ${percent(share)}`}</td>;
  return <td class={kind}><Bar share={share} /> {percent(share)}</td>;
}

export function Bar({ share }: { share: number }) {
  return <span class="bar" aria-hidden="true"><span style={{ width: `${100 * Math.min(1, share)}%` }} /></span>;
}
