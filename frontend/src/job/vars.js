// CSS custom properties from a template: by script, as the Content-Security-Policy allows no style attribute.

import { noChange } from "lit-html";
import { Directive, directive, PartType } from "lit-html/directive.js";

class Vars extends Directive {
  constructor(part) {
    super(part);
    if (part.type !== PartType.ELEMENT) throw new Error("vars belongs on an element");
  }

  render() {
    return noChange;
  }

  update(part, [values]) {
    for (const [name, value] of Object.entries(values)) part.element.style.setProperty(`--${name}`, value);
    return noChange;
  }
}

/** `<td ${vars({ share: 0.5 })}>` sets `--share: 0.5` on the element. */
export const vars = directive(Vars);
