// Serves the recorder from the copy that the page has made of itself, while the server is away: what is recorded on this
// device can be reached then, and recording goes on. Uploads do not pass through here.
const CACHE = 'tusd-py-recorder' // also in keep.js
const PATIENCE = 4000 // milliseconds until a server that does not answer counts as away

const page = new URL(self.registration.scope).pathname
const assets = new URL('assets/', self.registration.scope).pathname

self.addEventListener('fetch', (event) => {
  const { pathname } = new URL(event.request.url)
  if (event.request.method !== 'GET') return
  if (pathname === page || pathname.startsWith(assets)) event.respondWith(answer(event.request))
})

/** The answer of the server, else the kept one. */
async function answer(request) {
  const cache = await caches.open(CACHE)
  const kept = await cache.match(request.url, { ignoreVary: true, ignoreSearch: true })
  if (kept === undefined) return fetch(request)
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE))
  const response = await Promise.race([fetch(request).catch(() => undefined), late])
  return response === undefined || response.status >= 500 ? kept : response
}
