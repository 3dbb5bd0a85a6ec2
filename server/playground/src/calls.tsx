// The request on screen, to be copied.

import { useRef, useState } from "preact/hooks";
import { type Body, key } from "./api";
import { type Path, curl, python } from "./call";
import { Choice } from "./fields";

export function Calls({ path, body, title = "The same call" }: { path: Path; body: Body; title?: string }) {
  const [language, setLanguage] = useState<"curl" | "python">("curl");
  const [said, setSaid] = useState("");
  const code = useRef<HTMLPreElement>(null);
  const url = new URL(".", location.href).href;
  const text = (language === "curl" ? curl : python)(url, path, body, key.get() !== "");
  const copy = async () => setSaid(await copied(text, code.current!));
  return (
    <details class="calls">
      <summary>{title} with curl or Python</summary>
      <div class="toolbar">
        <Choice
          label="Language" value={language} set={setLanguage}
          options={[{ value: "curl", text: "curl" }, { value: "python", text: "Python" }]}
        />
        <button type="button" onClick={copy}>Copy</button>
        <span role="status">{said}</span>
      </div>
      <pre ref={code} tabIndex={0} role="region" aria-label={`${title}, in ${language}`}>{text}</pre>
    </details>
  );
}

/** Browsers have a clipboard for pages from this machine or over https; elsewhere the text is marked, to be copied by hand. */
async function copied(text: string, shown: HTMLElement): Promise<string> {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied.";
  } catch {
    getSelection()?.selectAllChildren(shown);
    return "Marked: press Ctrl+C.";
  }
}
