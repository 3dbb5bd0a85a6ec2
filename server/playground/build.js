// Bundles src/ into page/, or into the folder that is named: what the server sends, and nothing else.
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { build } from "esbuild";

const folder = process.argv[2] ?? "page";
mkdirSync(folder, { recursive: true });
await build({
  entryPoints: { app: "src/main.tsx" },
  outdir: folder,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  banner: { js: `/*! With Preact:\n${readFileSync("node_modules/preact/LICENSE", "utf8").trim()}\n*/` },
});
await build({ entryPoints: ["src/app.css"], outdir: folder, minify: true });
for (const name of ["index.html", "icon.svg"]) copyFileSync(`src/${name}`, `${folder}/${name}`);
