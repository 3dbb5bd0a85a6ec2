// What is asked, and how: the settings that panels share, and the fields to change them.

import type { Body, Model } from "./api";
import type { Path } from "./call";
import { Choice, Menu, Seed, Slider, Text, Whole } from "./fields";

export interface Settings {
  model: string;
  kind: "completion" | "chat";
  prompt: string;
  depth: number;
  thoughts: number;
  temperature: number;
  thoughtTemperature: number;
  maxTokens: number;
  seed: number;
}

export const PLAIN: Settings = {
  model: "",
  kind: "completion",
  prompt: "",
  depth: 8,
  thoughts: 1,
  temperature: 0,
  thoughtTemperature: 0,
  maxTokens: 64,
  seed: 1,
};

/** A way to begin; `model` is a bundled one, or any where it names none. */
export interface Example extends Partial<Settings> {
  name: string;
  hint?: string;
}

export function pathOf(settings: Settings): Path {
  return settings.kind === "chat" ? "v1/chat/completions" : "v1/completions";
}

export type Message = { role: "user" | "assistant"; content: string };

/** The body of a request. One that names a preset leaves the rest to it. */
export function bodyOf(settings: Settings, model: Model | undefined, history: Message[] = []): Body {
  const { kind, prompt, seed } = settings;
  const question: Body = kind === "chat" ? { messages: [...history, { role: "user", content: prompt }] } : { prompt };
  const named: Body = { model: settings.model, ...question, seed };
  if (model?.parent) return named;
  const body: Body = { ...named, max_tokens: settings.maxTokens, temperature: settings.temperature };
  if (!model?.capabilities.thinking) return body;
  const { depth, thoughts, thoughtTemperature } = settings;
  return { ...body, thought_depth: depth, num_thoughts: depth ? thoughts : 1, thought_temperature: thoughtTemperature };
}

/** Settings that this server can have: an example's, where it serves its model. */
export function begin(example: Example, models: Model[], old = PLAIN): Settings {
  const { name: _, hint: __, ...own } = example;
  const model = own.model ?? old.model;
  const served = models.some(({ id }) => id === model) ? model : models[0]!.id;
  return within({ ...old, ...own, model: served }, models);
}

function within(settings: Settings, models: Model[]): Settings {
  const most = models.find(({ id }) => id === settings.model)!.capabilities;
  const { depth, thoughts } = settings;
  return { ...settings, depth: Math.min(depth, most.max_thought_depth), thoughts: Math.min(thoughts, most.max_num_thoughts) };
}

/** Those whose model is served. */
export function usable<T extends Example>(examples: T[], models: Model[]): T[] {
  const known = examples.filter((example) => models.some(({ id }) => id === example.model));
  return known.length ? known : examples.filter((example) => !example.model);
}

export interface Editing {
  settings: Settings;
  set: (settings: Settings) => void;
  models: Model[];
}

export function ExampleMenu({ examples, ...editing }: Editing & { examples: Example[] }) {
  const { settings, set, models } = editing;
  const shown = examples.find((example) => example.prompt === settings.prompt);
  const options = examples.map(({ name }) => ({ value: name, text: name }));
  const own = shown ? [] : [{ value: "", text: "Your own" }];
  const choose = (name: string) => {
    const example = examples.find((one) => one.name === name);
    if (example) set(begin(example, models, settings));
  };
  return <Menu label="Example" value={shown?.name ?? ""} set={choose} options={[...own, ...options]} hint={shown?.hint} />;
}

export function ModelMenu({ settings, set, models }: Editing) {
  const options = models.map(({ id, parent }) => ({ value: id, text: parent ? `${id} (preset of ${parent})` : id }));
  return <Menu label="Model" value={settings.model} set={(model) => set(within({ ...settings, model }, models))} options={options} />;
}

export function Question({ settings, set, rows = 5 }: Editing & { rows?: number }) {
  const kinds = [{ value: "completion", text: "Completion" }, { value: "chat", text: "Chat" }] as const;
  return (
    <>
      <Choice label="Endpoint" value={settings.kind} set={(kind) => set({ ...settings, kind })} options={[...kinds]} />
      <Text
        label={settings.kind === "chat" ? "Message" : "Prompt"} rows={rows}
        value={settings.prompt} set={(prompt) => set({ ...settings, prompt })}
      />
    </>
  );
}

/** How it thinks, and draws; `depths` stand in the place of the one depth. */
export function Knobs({ settings, set, models, depths = null }: Editing & { depths?: preact.ComponentChild }) {
  const model = models.find(({ id }) => id === settings.model);
  if (model?.parent) {
    return (
      <>
        <p class="hint">A preset brings its own settings.</p>
        <Seed value={settings.seed} set={(seed) => set({ ...settings, seed })} />
      </>
    );
  }
  const most = model?.capabilities.max_thought_depth ?? 0;
  const cold = settings.thoughts > 1 && !settings.thoughtTemperature;
  return (
    <>
      {most > 0 ? (
        <>
          {depths ?? (
            <Slider
              label="Thought depth" value={settings.depth} max={most} set={(depth) => set({ ...settings, depth })}
              hint="Most hidden tokens before each visible one; at 0 it does not think."
            />
          )}
          <Slider
            label="Parallel thoughts" value={settings.thoughts} min={1} max={model!.capabilities.max_num_thoughts}
            set={(thoughts) => set({ ...settings, thoughts })}
            hint={cold && "More than one needs a thought temperature above 0: else all are the same."}
          />
          <Slider
            label="Thought temperature" value={settings.thoughtTemperature} max={2} step={0.1}
            set={(thoughtTemperature) => set({ ...settings, thoughtTemperature })}
          />
        </>
      ) : (
        <p class="hint">{settings.model} does not think.</p>
      )}
      <Slider
        label="Temperature" value={settings.temperature} max={2} step={0.1}
        set={(temperature) => set({ ...settings, temperature })}
      />
      <div class="pair">
        <Whole label="Max tokens" value={settings.maxTokens} min={1} max={4096} set={(maxTokens) => set({ ...settings, maxTokens })} />
        <Seed value={settings.seed} set={(seed) => set({ ...settings, seed })} />
      </div>
    </>
  );
}
