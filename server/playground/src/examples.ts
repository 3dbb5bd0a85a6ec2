// Ways to begin. Those of a bundled model are problems of the kinds that it has learned.

import type { Example } from "./settings";

const DIAL = "A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?";
const SWAPS =
  "Anna has the ball. Ben, Carl, Dora, Emma and Fred have nothing. Anna and Ben swap on Monday. Ben swaps with Dora on Tuesday. " +
  "Dora and Fred swap on Wednesday. Who has the ball now?";
const APPLES =
  "Mary has 4 apples. She buys 3 more on Monday. She doubles them on Tuesday. She sells 2 on Wednesday. She gives away half on Thursday. " +
  "How many apples does Mary have now?";
const CHAINS = "Count past 9 from 0. a is 3. a plus 4 is b. b times 2 is c. c minus 1 is d. d plus 5 is e. Which digit is e?";

const asked = (question: string) => `Question: ${question}\nAnswer:`;

const QUIET = { model: "quiet-small", maxTokens: 24, depth: 12, temperature: 0, thoughtTemperature: 0, thoughts: 1, kind: "completion" as const };
const ANY: Example[] = [
  { name: "The beginning of a story", prompt: "Once upon a time", maxTokens: 48 },
  { name: "A question", kind: "chat", prompt: "How many minutes are there in a day?", maxTokens: 64 },
];

export const WRITE: Example[] = [
  {
    ...QUIET, name: "It makes up problems", prompt: "Question: A dial is at 3. It doubles on Monday.", maxTokens: 96, temperature: 1, seed: 4,
    hint: "It goes on with the text of a problem, and answers it.",
  },
  { ...QUIET, name: "A dial, three steps", prompt: asked(DIAL), hint: "Flipped over, 3 becomes 6; 9 is followed by 0. The answer is 0." },
  { ...QUIET, name: "Who has the ball?", kind: "chat", prompt: SWAPS, hint: "The answer is Fred." },
  { ...QUIET, name: "Apples, four steps", prompt: asked(APPLES), hint: "The answer is 6." },
  {
    ...QUIET, name: "Four thoughts side by side", prompt: asked(CHAINS), thoughts: 4, thoughtTemperature: 1, seed: 2,
    hint: "Each token has four thoughts; what they suggest is averaged. The answer is 8.",
  },
  ...ANY,
];
