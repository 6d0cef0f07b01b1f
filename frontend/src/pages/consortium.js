import { page } from "../page.js";

page({ what: "this page", start() {} });
