// The fields of a form, each with its label.

import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface Field<T> {
  label: string;
  value: T;
  set: (value: T) => void;
  hint?: ComponentChildren;
  disabled?: boolean;
}

function Labelled({ id, label, shown, hint, children }: {
  id: string;
  label: string;
  shown?: string;
  hint?: ComponentChildren;
  children: ComponentChildren;
}) {
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {shown !== undefined && <output for={id}>{shown}</output>}
      {children}
      {hint && <p class="hint" id={`${id}-hint`}>{hint}</p>}
    </div>
  );
}

export function Slider({ min = 0, max, step = 1, ...field }: Field<number> & { min?: number; max: number; step?: number }) {
  const id = useId();
  const shown = step < 1 ? field.value.toFixed(1) : String(field.value);
  return (
    <Labelled id={id} label={field.label} shown={shown} hint={field.hint}>
      <input
        id={id} type="range" min={min} max={max} step={step} value={field.value} disabled={field.disabled}
        aria-describedby={field.hint ? `${id}-hint` : undefined}
        onInput={(event) => field.set(event.currentTarget.valueAsNumber)}
      />
    </Labelled>
  );
}

export function Menu({ options, ...field }: Field<string> & { options: { value: string; text: string }[] }) {
  const id = useId();
  return (
    <Labelled id={id} label={field.label} hint={field.hint}>
      <select id={id} disabled={field.disabled} onChange={(event) => field.set(event.currentTarget.value)}>
        {options.map(({ value, text }) => (
          <option key={value} value={value} selected={value === field.value}>{text}</option>
        ))}
      </select>
    </Labelled>
  );
}

export function Text({ rows = 4, ...field }: Field<string> & { rows?: number }) {
  const id = useId();
  return (
    <Labelled id={id} label={field.label} hint={field.hint}>
      <textarea
        id={id} rows={rows} value={field.value} spellcheck={false} aria-describedby={field.hint ? `${id}-hint` : undefined}
        onInput={(event) => field.set(event.currentTarget.value)}
      />
    </Labelled>
  );
}

export function Whole({ min = 0, max, ...field }: Field<number> & { min?: number; max: number }) {
  const id = useId();
  const set = (value: number) => Number.isInteger(value) && value >= min && value <= max && field.set(value);
  return (
    <Labelled id={id} label={field.label} hint={field.hint}>
      <input
        id={id} type="number" required min={min} max={max} step={1} value={field.value} disabled={field.disabled}
        onInput={(event) => set(event.currentTarget.valueAsNumber)}
      />
    </Labelled>
  );
}

const MOST = 2 ** 31 - 1;

export function Seed({ value, set }: { value: number; set: (value: number) => void }) {
  const drawn = () => crypto.getRandomValues(new Uint16Array(1))[0]!;
  return (
    <div class="seed">
      <Whole label="Seed" value={value} set={set} max={MOST} />
      <button type="button" onClick={() => set(drawn())}>New seed</button>
    </div>
  );
}

export function Choice<T extends string>({ label, value, set, options }: Field<T> & { options: { value: T; text: string }[] }) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      {options.map((option) => (
        <label key={option.value}>
          <input type="radio" name={name} checked={option.value === value} onChange={() => set(option.value)} />
          <span>{option.text}</span>
        </label>
      ))}
    </fieldset>
  );
}
