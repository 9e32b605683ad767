// The shape of what a storage holds: it may come from an older version, or from elsewhere.
export const isText = value => typeof value === "string";
export const isTexts = value => Array.isArray(value) && value.every(isText);

// The browser's storage. Without permission, and if it is full, reads give null and writes do
// nothing.
const guarded = area => {
  const attempt = action => { try { return action(area()); } catch { return null; } };
  return {
    get: key => attempt(storage => storage.getItem(key)),
    getJson: key => attempt(storage => JSON.parse(storage.getItem(key))), // null if it is none
    set: (key, text) => attempt(storage => storage.setItem(key, text)),
    keys: prefix => (
      attempt(storage => Object.keys(storage).filter(key => key.startsWith(prefix))) ?? []
    ),
    remove: key => attempt(storage => storage.removeItem(key)),
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
