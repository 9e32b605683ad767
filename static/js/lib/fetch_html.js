// Fetches a piece of the page that no element's own request brings: the server takes it for htmx.
export const fetchHtml = (url, options = {}) => (
  fetch(url, { ...options, headers: { "HX-Request": "true" } })
);
