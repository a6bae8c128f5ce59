import { openPage } from "./page.ts";
import { contextOfPage, reportError, start } from "./telemetry.ts";

try {
  start();
} catch (error) {
  console.warn("No telemetry of this page:", error); // the tasks matter more
}
openPage(reportError, contextOfPage());
