// What the page needs of a browser, beyond what whoever reads JavaScript modules has.

const NEEDED: Record<string, () => boolean> = {
  "readable streams": () => typeof ReadableStream === "function",
  "dialogs": () => typeof HTMLDialogElement === "function",
  "mixed colours": () => CSS.supports("color", "color-mix(in srgb, red, blue)"),
  "session storage": () => Boolean(sessionStorage),
};

/** The first that is missing. */
export function missingFeature(): string | undefined {
  return Object.keys(NEEDED).find((name) => {
    try {
      return !NEEDED[name]!();
    } catch {
      return true; // a browser may forbid the storage
    }
  });
}
