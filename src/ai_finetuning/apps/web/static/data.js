import { command } from "./dom.js";

command(["aift"]);
