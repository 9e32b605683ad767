// The page's own events. They are on the document, so that triggers in templates can name them:
//   halt:queue    a message waits: { text, first }
//   halt:stop     a Stop is being sent
//   halt:frozen   the text of an answer that is being stopped no longer changes
//   halt:ended    an answer ended: { state, exchange, back }
//   halt:models   the list of models is needed anew
//   halt:listed   the list of models has arrived
//   halt:updated  the conversation was changed by another tab or device
export const emit = (name, detail) => {
  document.dispatchEvent(new CustomEvent(`halt:${name}`, { detail }));
};
export const listen = (name, handler) => {
  document.addEventListener(`halt:${name}`, event => handler(event.detail ?? {}));
};
