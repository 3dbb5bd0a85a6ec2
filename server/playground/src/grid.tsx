// One of Karel's worlds, drawn.

import { HEADINGS, type World } from "./worlds";

const CELL = 20;
const NAMES = ["north", "east", "south", "west"];

export function Grid({ world, label }: { world: World; label: string }) {
  const { size, row, column, heading } = world;
  const side = size * CELL;
  const cells = Array.from({ length: size * size }, (_, cell) => ({ x: (cell % size) * CELL, y: Math.floor(cell / size) * CELL, cell }));
  return (
    <svg class="grid" viewBox={`-1 -1 ${side + 2} ${side + 2}`} role="img" aria-label={`${label}: ${told(world)}`}>
      {cells.map(({ x, y, cell }) => (
        <rect key={cell} x={x} y={y} width={CELL} height={CELL} class={world.walls.has(cell) ? "wall" : "cell"} />
      ))}
      {cells.map(({ x, y, cell }) => world.markers[cell]! > 0 && <Marker key={cell} x={x} y={y} count={world.markers[cell]!} />)}
      <path
        class="robot" d="M0 -7 L6 6 L0 3 L-6 6 Z"
        transform={`translate(${(column + 0.5) * CELL} ${(row + 0.5) * CELL}) rotate(${heading * 90})`}
      />
      <rect class="edge" x={0} y={0} width={side} height={side} />
    </svg>
  );
}

function Marker({ x, y, count }: { x: number; y: number; count: number }) {
  return (
    <>
      <circle class="marker" cx={x + 15} cy={y + 5} r={3.6} />
      {count > 1 && <text class="count" x={x + 15} y={y + 7}>{count}</text>}
    </>
  );
}

function told({ size, row, column, heading, markers, walls }: World): string {
  const at = (cell: number) => `row ${Math.floor(cell / size)} column ${cell % size}`;
  const lying = markers.flatMap((count, cell) => (count ? [`${count} on ${at(cell)}`] : []));
  const standing = [...walls].map(at);
  return [
    `the robot on row ${row} column ${column} facing ${NAMES[heading] ?? HEADINGS[heading]}`,
    lying.length ? `markers: ${lying.join(", ")}` : "no markers",
    standing.length ? `walls on ${standing.join(", ")}` : "no inner walls",
  ].join("; ");
}
