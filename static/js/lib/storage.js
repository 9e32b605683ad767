// The shape of what a storage holds: it may come from an older version, or from elsewhere.
export const isText = value => typeof value === "string";
export const isTexts = value => Array.isArray(value) && value.every(isText);
export const areFiles = value => (
  Array.isArray(value) && value.every(file => isText(file?.id) && isText(file.name))
);

// The browser's storage, for the page's person alone: people may share a browser. A page that loads
// removes what another person's page has stored; one that is still open then can read and write
// nothing any more. Without permission, and if it is full, reads give null and writes do nothing.
const { person } = document.body.dataset, PERSON = "halt.person";
const PERSONAL = /^halt\.(?!single-key)/; // that switch is the browser's, as the theme is
const guarded = area => {
  const attempt = action => { try { return action(area()); } catch { return null; } };
  attempt(storage => {
    if ((storage[PERSON] ?? person) !== person) {
      for (const key of Object.keys(storage)) if (PERSONAL.test(key)) delete storage[key];
    }
    storage[PERSON] = person;
  });
  const own = action => attempt(storage => (storage[PERSON] === person ? action(storage) : null));
  return {
    get: key => own(storage => storage.getItem(key)),
    getJson: key => own(storage => JSON.parse(storage.getItem(key))), // null if it is none
    set: (key, text) => own(storage => storage.setItem(key, text)),
    keys: prefix => (
      own(storage => Object.keys(storage).filter(key => key.startsWith(prefix))) ?? []
    ),
    remove: key => own(storage => storage.removeItem(key)),
  };
};
export const local = guarded(() => localStorage); // all tabs, until it is cleared
export const session = guarded(() => sessionStorage); // this tab

// How the page looks: an attribute of the document, and a cookie that the server reads, so that the
// page arrives with it. "" removes both.
const YEAR = 31_536_000; // seconds
export const keepLook = (name, value) => {
  const { dataset } = document.documentElement, age = value ? YEAR : 0;
  if (value) dataset[name] = value;
  else delete dataset[name];
  document.cookie = `halt-${name}=${value}; path=/; max-age=${age}; samesite=lax`;
};
