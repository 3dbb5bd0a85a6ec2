// The page: the models this server has, the key where it wants one, and a tab for each thing to try.

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, type Model, describe, get, key, whenRefused } from "./api";
import { Compare } from "./compare";
import { Correct } from "./correct";
import { Karel } from "./karel";
import { Live } from "./live";
import { Vote } from "./vote";
import { Write } from "./write";

const PANELS: { id: string; name: string; Panel: (props: { models: Model[] }) => JSX.Element }[] = [
  { id: "write", name: "Write", Panel: Write },
  { id: "compare", name: "Compare", Panel: Compare },
  { id: "correct", name: "Correct", Panel: Correct },
  { id: "vote", name: "Vote", Panel: Vote },
  { id: "karel", name: "Karel", Panel: Karel },
];
const AGAIN_MS = 2000;

export function App() {
  const [models, setModels] = useState<Model[] | null>(null);
  const [said, setSaid] = useState("Looking for the server’s models.");
  const [refused, setRefused] = useState(false);

  const load = async () => {
    try {
      const { data } = await (await get("v1/models")).json();
      setModels(data);
      setRefused(false);
    } catch (error) {
      const { status, code } = error instanceof ApiError ? error : { status: 0, code: "" };
      if (status !== 401) setRefused(false); // else it was just set, or is still
      setSaid(describe(error) ?? "");
      if (code === "model_loading") setTimeout(load, AGAIN_MS);
    }
  };
  useEffect(() => {
    whenRefused(() => setRefused(true));
    load();
  }, []);

  return (
    <>
      <header class="top">
        <h1>quietserve <span>playground</span></h1>
        {models && <Live />}
      </header>
      {models ? <Tabs models={models} /> : (
        <main class="plain">
          <p role="status">{!refused && said}</p>
          {!refused && <button type="button" onClick={load}>Try again</button>}
        </main>
      )}
      {refused && <KeyDialog again={load} />}
    </>
  );
}

function KeyDialog({ again }: { again: () => Promise<void> }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [typed, setTyped] = useState("");
  const [wrong, setWrong] = useState(key.get() !== "");
  const show = () => dialog.current?.showModal();
  useEffect(show, []);
  const submit = async (event: Event) => {
    event.preventDefault();
    key.set(typed);
    setWrong(false);
    await again();
    setWrong(true); // where it is right, this dialog is gone
  };
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onCancel={(event) => event.preventDefault()} onClose={show}>
      <form onSubmit={submit}>
        <h2 id="key-title">This server wants an API key</h2>
        <p>It stays in this tab until the tab is closed, and is sent to this server alone.</p>
        <div class="field">
          <label for="key">API key</label>
          <input
            id="key" type="password" autocomplete="off" required pattern="[!-~]+" title="Visible ASCII characters, as in any key" value={typed} aria-invalid={wrong} aria-describedby="key-wrong"
            onInput={(event) => setTyped(event.currentTarget.value)}
          />
        </div>
        <p id="key-wrong" class="error" role="alert" hidden={!wrong}>That key is not valid.</p>
        <div class="actions"><button type="submit" class="primary">Go on</button></div>
      </form>
    </dialog>
  );
}

function Tabs({ models }: { models: Model[] }) {
  const [chosen, setChosen] = useState(fromAddress);
  const list = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const changed = () => setChosen(fromAddress());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  const choose = (number: number) => {
    const to = (number + PANELS.length) % PANELS.length;
    history.replaceState(null, "", `#${PANELS[to]!.id}`);
    setChosen(to);
    (list.current!.children[to] as HTMLElement).focus();
  };
  const move = (event: KeyboardEvent) => {
    const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: PANELS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  };
  return (
    <>
      <nav aria-label="What to try">
        <div role="tablist" ref={list} onKeyDown={move}>
          {PANELS.map(({ id, name }, number) => (
            <button
              type="button" role="tab" key={id} id={`tab-${id}`} aria-controls={`panel-${id}`} aria-selected={number === chosen}
              tabIndex={number === chosen ? 0 : -1} onClick={() => choose(number)}
            >
              {name}
            </button>
          ))}
        </div>
      </nav>
      <main>
        {PANELS.map(({ id, Panel }, number) => (
          <section role="tabpanel" key={id} id={`panel-${id}`} aria-labelledby={`tab-${id}`} hidden={number !== chosen}>
            <Panel models={models} />
          </section>
        ))}
      </main>
    </>
  );
}

function fromAddress(): number {
  return Math.max(0, PANELS.findIndex(({ id }) => `#${id}` === location.hash));
}
