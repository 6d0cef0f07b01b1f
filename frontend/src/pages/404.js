// The page for addresses that are none.

import { page } from "../page.js";

page({ what: "this page", open: true, start() {} });
