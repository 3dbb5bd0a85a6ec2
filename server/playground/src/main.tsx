import { render } from "preact";
import { App } from "./app";
import { missingFeature } from "./features";

const missing = missingFeature();
const app = document.getElementById("app")!;
if (missing) {
  app.querySelector("p")!.textContent = `This page needs a newer browser: yours has no ${missing}.`;
} else {
  app.textContent = "";
  render(<App />, app);
}
