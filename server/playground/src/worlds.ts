// Karel's worlds: read from the compact text that the model is asked with, and run as the package's own interpreter runs them.

export const HEADINGS = "NESW"; // each a right turn from the one before
const MOST_MARKERS = 9; // on one cell
export const STEPS = [[-1, 0], [0, 1], [1, 0], [0, -1]] as const; // rows and columns, by heading

export interface World {
  size: number;
  row: number;
  column: number;
  heading: number;
  walls: ReadonlySet<number>; // cells, row by row
  markers: number[]; // how many lie on each cell
}

export interface Pair {
  before: World;
  after: World;
}

export type Operation = "move" | "left" | "right" | "pick" | "put";

/** The pairs of a text like `4x4 @r3c1N *r0c0 =r2c0W -r0c0`. Throws an Error naming the word that cannot be. */
export function read(text: string): Pair[] {
  const [first = "", ...words] = text.trim().split(/\s+/);
  const size = Number(/^([2-8])x\1$/.exec(first)?.[1]);
  if (!size) throw new Error(`“${first}” is no size of a world; the first word is one of 2x2 to 8x8.`);
  const pairs: Pair[] = [];
  for (const word of words) put(word, pairs, size);
  if (!pairs.length) throw new Error("There is no world; each begins with the robot’s place, like @r0c0N.");
  for (const { before, after } of pairs) if (after.heading < 0) throw new Error(`The world of ${placed(before)} says not where the robot comes to.`);
  return pairs;
}

function put(word: string, pairs: Pair[], size: number) {
  const found = /^([@=#*+-])r([0-9])c([0-9])([NESW]?)$/.exec(word);
  const [, sign = "", row, column, letter = ""] = found ?? [];
  const place = { row: Number(row), column: Number(column), heading: HEADINGS.indexOf(letter || "-") };
  if (!found || Math.max(place.row, place.column) >= size || "@=".includes(sign) !== (letter !== "")) {
    throw new Error(`“${word}” is no place in a world of ${size} by ${size} cells.`);
  }
  if (sign === "@") {
    const before = { size, ...place, walls: new Set<number>(), markers: new Array<number>(size * size).fill(0) };
    pairs.push({ before, after: { ...before, heading: -1 } });
    return;
  }
  const pair = pairs.at(-1);
  const ended = pair && pair.after.heading >= 0;
  if (!pair || Boolean(ended) !== "+-".includes(sign)) throw new Error(`“${word}” cannot stand where it does.`);
  const cell = place.row * size + place.column;
  if (sign === "=") pair.after = { ...pair.before, ...place, markers: [...pair.before.markers] };
  if (sign === "#") (pair.before.walls as Set<number>).add(cell);
  if (sign === "*") pair.before.markers[cell]! += 1;
  if (sign === "+") pair.after.markers[cell]! += 1;
  if (sign === "-") pair.after.markers[cell]! -= 1;
}

const placed = ({ row, column, heading }: World) => `@r${row}c${column}${HEADINGS[heading]}`;

/** Whether the robot faces a wall: an inner one, or the edge. */
export function isBlocked(world: World): boolean {
  const { row, column } = ahead(world);
  return Math.min(row, column) < 0 || Math.max(row, column) >= world.size || world.walls.has(row * world.size + column);
}

function ahead({ row, column, heading }: World) {
  const [down, across] = STEPS[heading]!;
  return { row: row + down, column: column + across };
}

/** The world behind one operation. A move into a wall does nothing, nor does picking where no marker lies. */
export function step(world: World, operation: Operation): World {
  if (operation === "move") return isBlocked(world) ? world : { ...world, ...ahead(world) };
  if (operation === "left") return { ...world, heading: (world.heading + 3) % 4 };
  if (operation === "right") return { ...world, heading: (world.heading + 1) % 4 };
  const markers = [...world.markers];
  const cell = world.row * world.size + world.column;
  markers[cell] = Math.min(MOST_MARKERS, Math.max(0, markers[cell]! + (operation === "put" ? 1 : -1)));
  return { ...world, markers };
}

/** The world before the first operation and behind each. */
export function trace(world: World, program: Operation[]): World[] {
  const worlds = [world];
  for (const operation of program) worlds.push(step(worlds.at(-1)!, operation));
  return worlds;
}

export function same(one: World, other: World): boolean {
  const robot = (world: World) => [world.row, world.column, world.heading].join();
  return robot(one) === robot(other) && one.markers.join() === other.markers.join();
}

export function isOperation(word: string): word is Operation {
  return ["move", "left", "right", "pick", "put"].includes(word);
}
