// Ways to begin. Those of a bundled model are problems of the kinds that it has learned.

import type { Example } from "./settings";

const DIAL = "A dial is at 2. It goes up 4 on Monday. It flips over on Tuesday. It doubles on Wednesday. Where is the dial now?";
const DIALS =
  "A dial is at 3. It goes up 4 on Monday. It flips over on Tuesday. It triples on Wednesday. It goes down 3 on Thursday. Where is the dial now?";
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
    ...QUIET, name: "It makes up problems", prompt: "Question: A dial is at 3. It doubles on Monday.", maxTokens: 96, temperature: 1, seed: 19,
    hint: "It goes on with the text of a problem, and answers it; where it is about to answer, thoughts weigh most.",
  },
  { ...QUIET, name: "A dial, three steps", prompt: asked(DIAL), hint: "2 and 4 are 6; flipped over, 6 becomes 3. The answer is 6." },
  { ...QUIET, name: "Who has the ball?", kind: "chat", prompt: SWAPS, hint: "The answer is Fred." },
  { ...QUIET, name: "Apples, four steps", prompt: asked(APPLES), hint: "The answer is 6." },
  {
    ...QUIET, name: "Four thoughts side by side", prompt: asked(CHAINS), thoughts: 4, thoughtTemperature: 1, seed: 2,
    hint: "Each token has four thoughts; what they suggest is averaged. The answer is 8.",
  },
  ...ANY,
];

export const COMPARE: Example[] = [
  { ...QUIET, name: "A dial, four steps", prompt: asked(DIALS), depth: 12, hint: "Flipped over, 3 becomes 6; 9 is followed by 0. The answer is 3." },
  { ...QUIET, name: "Who has the ball?", kind: "chat", prompt: SWAPS, hint: "The answer is Fred." },
  { ...QUIET, name: "Apples, four steps", prompt: asked(APPLES), hint: "The answer is 6." },
  { ...QUIET, name: "It makes up problems", prompt: "Question: A dial is at 3. It doubles on Monday.", maxTokens: 96, temperature: 1, seed: 19 },
  ...ANY,
];

const SIGNS = "Signs that make the numbers come to the total, modulo 11; behind each sign stands what is left. Right where 0 is left at the end.";
const SCORE = { model: "score-small", kind: "chat" as const, maxTokens: 32, hint: SIGNS };

export const CORRECT: Example[] = [
  { ...SCORE, name: "Signs for 2 5 3 6 6", prompt: "2 5 3 6 6 make 9.", temperature: 0 },
  { ...SCORE, name: "Signs for 4 7 10 4 10", prompt: "4 7 10 4 10 make 5.", temperature: 0 },
  { ...SCORE, name: "Signs for 8 1 7 5 2, right at once", prompt: "8 1 7 5 2 make 5.", temperature: 0 },
  { ...QUIET, name: "A dial, three steps", prompt: asked(DIAL), hint: "quiet-small has not learned to correct itself; score-small, served beside it, has." },
  ...ANY,
];

export const VOTE: Example[] = [
  { ...SCORE, name: "Signs for 7 8 8 10 8", prompt: "7 8 8 10 8 make 2.", temperature: 1 },
  { ...SCORE, name: "Signs for 2 5 3 6 6", prompt: "2 5 3 6 6 make 9.", temperature: 1 },
  {
    ...QUIET, name: "Who has the ball?", kind: "chat", prompt: SWAPS, depth: 6, temperature: 1, thoughtTemperature: 1,
    hint: "Thoughts of six tokens are too short for some of the steps. The answer is Fred.",
  },
  ...ANY.map((example) => ({ ...example, temperature: 1 })),
];

export const KAREL: { name: string; worlds: string; hint: string }[] = [
  {
    name: "Round the walls",
    worlds: "4x4 @r2c0N #r0c1 #r1c3 #r2c2 #r3c3 *r3c1 =r0c0E +r0c0 @r3c0E *r1c0 =r3c2S +r3c2 @r3c2S #r0c3 #r1c1 #r3c3 =r3c1W +r3c2",
    hint: "Three worlds; one program is to do for all of them.",
  },
  {
    name: "Turn round and put",
    worlds: "4x4 @r3c0N #r0c2 #r2c0 *r1c3 =r3c0S +r3c0 @r3c0S #r2c1 *r1c1 =r1c0N +r1c0 @r2c2S *r1c3 =r0c2N +r0c2",
    hint: "In the first world the robot stands in a corner.",
  },
  {
    name: "One that it fails",
    worlds: "4x4 @r1c0W #r0c0 #r0c1 #r1c1 #r2c3 *r3c3 =r3c0S +r1c0 +r3c0 @r0c1N #r3c2 =r0c0W +r0c0 +r0c1 @r2c0N #r3c3 *r2c2 =r2c0W +r2c0",
    hint: "Its program is right in some of the worlds alone.",
  },
];
