// What is so of Karel's robot, in the words of `quietserve train karel-traces`: what a probe's readouts are held against.

import { HEADINGS, STEPS, type World, isBlocked } from "./worlds";

const TURNED = ["not", "right", "round", "left"]; // by right turns

/* By the properties that we know how to tell, of a world now and as it began. */
const TRUTHS: Record<string, (now: World, begin: World) => string> = {
  obstacle: (now) => (isBlocked(now) ? "yes" : "no"),
  direction: (now) => HEADINGS[now.heading]!,
  position: (now, begin) => signed(now.row - begin.row) + signed(now.column - begin.column),
  turned: (now, begin) => TURNED[(now.heading - begin.heading + 4) % 4]!,
  moved: (now, begin) => signed(along(now, begin, begin.heading)) + signed(along(now, begin, (begin.heading + 1) % 4)),
};

/**
 * What is so `offset` steps on from each step, null where there is no such step; undefined for a property that we cannot tell.
 * The worlds are one before the first step and behind each.
 */
export function truths(property: string, [begin, ...behind]: World[], offset: number): (string | null)[] | undefined {
  const truth = TRUTHS[property];
  return truth && behind.map((_, number) => {
    const world = behind[number + offset];
    return world ? truth(world, begin!) : null;
  });
}

/** How many cells it has come towards a heading. */
function along(now: World, begin: World, heading: number): number {
  const [down, across] = STEPS[heading]!;
  return (now.row - begin.row) * down + (now.column - begin.column) * across;
}

const signed = (number: number) => (number < 0 ? String(number) : `+${number}`);
