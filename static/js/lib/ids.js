// A new ID of a stream: 32 hexadecimal digits.
export const newId = () => Array.from(
  crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0"),
).join("");
