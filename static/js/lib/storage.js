// The browser's storage. Without permission, and if it is full, reads give null and writes do
// nothing.
const guarded = area => {
  const attempt = action => { try { return action(area()); } catch { return null; } };
  return {
    get: key => attempt(storage => storage.getItem(key)),
    set: (key, text) => attempt(storage => storage.setItem(key, text)),
    keys: prefix => (
      attempt(storage => Object.keys(storage).filter(key => key.startsWith(prefix))) ?? []
    ),
    remove: key => attempt(storage => storage.removeItem(key)),
  };
};
export const local = guarded(() => localStorage); // all tabs, until it is cleared
export const session = guarded(() => sessionStorage); // this tab
