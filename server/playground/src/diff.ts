// Which parts two sequences share, by their longest common subsequence.

export interface Part<T> {
  kind: "same" | "removed" | "added";
  item: T;
}

export function diff<T>(before: T[], after: T[]): Part<T>[] {
  const lengths = table(before, after);
  const parts: Part<T>[] = [];
  let i = 0;
  let j = 0;
  while (i < before.length || j < after.length) {
    if (i < before.length && j < after.length && before[i] === after[j]) {
      parts.push({ kind: "same", item: after[j]! });
      i++, j++;
    } else if (i < before.length && (j === after.length || lengths[i + 1]![j]! >= lengths[i]![j + 1]!)) {
      parts.push({ kind: "removed", item: before[i++]! });
    } else {
      parts.push({ kind: "added", item: after[j++]! });
    }
  }
  return parts;
}

/** [i][j]: how much `before` from i on and `after` from j on have in common. */
function table<T>(before: T[], after: T[]): Uint16Array[] {
  const lengths = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
  for (let i = before.length - 1; i >= 0; i--) {
    for (let j = after.length - 1; j >= 0; j--) {
      const same = before[i] === after[j];
      lengths[i]![j] = same ? lengths[i + 1]![j + 1]! + 1 : Math.max(lengths[i + 1]![j]!, lengths[i]![j + 1]!);
    }
  }
  return lengths;
}

/** Words, each with the space before it. */
export function words(text: string): string[] {
  return text.match(/\s*\S+/g) ?? [];
}
