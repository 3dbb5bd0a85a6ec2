// How the server is doing, from /metrics, every two seconds while the page is seen.

import { useEffect, useState } from "preact/hooks";
import { get } from "./api";
import { type Sample, rates, readMetrics } from "./metrics";
import { percent } from "./tokens";

const EVERY_MS = 2000;
const KEPT = 31; // samples: a minute
const ZERO: Sample = { at: 0, visible: 0, hidden: 0, forwards: 0, requests: 0, accepted: 0, rejected: 0, running: 0, waiting: 0 };

export function Live() {
  const [samples, setSamples] = useState<Sample[]>([]);
  const [lost, setLost] = useState(false);
  useEffect(() => {
    const look = async () => {
      if (document.hidden) return;
      try {
        const sample = readMetrics(await (await get("metrics")).text(), performance.now() / 1000);
        setSamples((old) => [...old, sample].slice(-KEPT));
        setLost(false);
      } catch {
        setLost(true);
      }
    };
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const now = samples.at(-1);
  if (lost || !now) return <p class="live hint">{lost ? "The server’s metrics cannot be read." : ""}</p>;
  const paces = samples.slice(1).map((sample, number) => rates(samples[number]!, sample));
  const minute = rates(samples[0]!, now);
  const ever = rates({ ...ZERO, at: now.at }, now);
  const forwards = minute.forwards ?? ever.forwards;
  const accepted = minute.accepted ?? ever.accepted;
  return (
    <dl class="live" aria-label="The server now">
      <Figure name="tokens/s" value={(paces.at(-1)?.visible ?? 0).toFixed(1)}><Curve values={paces.map(({ visible }) => visible)} /></Figure>
      <Figure name="hidden tokens/s" value={(paces.at(-1)?.hidden ?? 0).toFixed(1)} />
      <Figure name="forwards/token" value={forwards === null ? "–" : forwards.toFixed(2)} />
      <Figure name="drafts accepted" value={accepted === null ? "–" : percent(accepted)} />
      <Figure name="running" value={String(now.running)} />
      <Figure name="waiting" value={String(now.waiting)} />
    </dl>
  );
}

function Figure({ name, value, children }: { name: string; value: string; children?: preact.ComponentChildren }) {
  return <div><dt>{name}</dt><dd>{value}{children}</dd></div>;
}

/** The last minute. */
function Curve({ values }: { values: number[] }) {
  const most = Math.max(...values, 1);
  const points = values.map((value, number) => `${(60 * (KEPT - 1 - values.length + number)) / (KEPT - 2)},${17 - (15 * value) / most}`);
  return <svg class="curve" viewBox="0 0 60 18" aria-hidden="true"><polyline points={points.join(" ")} /></svg>;
}
