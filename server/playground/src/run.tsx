// One piece of work at a time, that can be stopped; what went wrong is told.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { describe } from "./api";

export interface Running {
  busy: boolean;
  error: string | null;
  start: (work: (signal: AbortSignal) => Promise<unknown>) => Promise<void>;
  stop: () => void;
}

export function useRun(): Running {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const controller = useRef<AbortController | null>(null);
  const stop = () => controller.current?.abort();
  useEffect(() => stop, []);
  const start: Running["start"] = async (work) => {
    stop();
    const own = (controller.current = new AbortController());
    const isLatest = () => controller.current === own;
    setBusy(true);
    setError(null);
    try {
      await work(own.signal);
    } catch (failure) {
      if (isLatest()) setError(describe(failure));
    } finally {
      own.abort(); // of two at once, the one that is left
      if (isLatest()) setBusy(false);
    }
  };
  return { busy, error, start, stop };
}

/** The form of a panel on the left, what came of it on the right. */
export function Panel({ title, about, running, run, label, form, children }: {
  title: string;
  about: ComponentChildren;
  running: Running;
  run: () => void;
  label: string;
  form: ComponentChildren;
  children: ComponentChildren;
}) {
  const result = useRef<HTMLDivElement>(null);
  const submit = (event: Event) => {
    event.preventDefault();
    if (running.busy) return;
    run();
    const { top } = result.current!.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) result.current!.scrollIntoView(); // on a phone the form is above it
  };
  const shortcut = (event: KeyboardEvent) => {
    const form = event.currentTarget as HTMLFormElement;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  return (
    <>
      <header class="about">
        <h2>{title}</h2>
        <p>{about}</p>
      </header>
      <div class="panel">
        <form onSubmit={submit} onKeyDown={shortcut}>
          {form}
          <div class="actions">
            <button type="submit" class="primary" aria-disabled={running.busy}>{label}</button>
            <button type="button" onClick={running.stop} aria-disabled={!running.busy}>Stop</button>
          </div>
        </form>
        <div class="result" ref={result}>
          {running.error && <p class="error" role="alert">{running.error}</p>}
          {children}
        </div>
      </div>
    </>
  );
}
