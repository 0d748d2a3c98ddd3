// Keeps a copy of a page and its files in the browser, with a worker that serves them while the server is away.
const CACHE = 'tusd-py-recorder' // also in record-worker.js

/** Keep this page; a page that could not be kept is one that needs the server. */
export async function keepPage(worker) {
  if (!navigator.serviceWorker) return
  const page = new URL(location.pathname, location.origin).href
  const assets = new URL('assets/', page).href
  const loaded = performance.getEntriesByType('resource').map((entry) => entry.name)
  const wanted = new Set([page, ...loaded.filter((url) => url.startsWith(assets))])
  try {
    const cache = await caches.open(CACHE)
    await cache.addAll([...wanted])
    for (const { url } of await cache.keys()) if (!wanted.has(url)) await cache.delete(url) // of an earlier version
    await navigator.serviceWorker.register(worker, { scope: page })
  } catch {
    // The server went away meanwhile, or the browser has no room.
  }
}
