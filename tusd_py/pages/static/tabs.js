// Tells the other tabs of this browser of the uploads of this one, and shows theirs. Tabs speak with each other: a
// stream of the server would take one of the six connections that the browser has for all of them.
import { element, formatBytes, text } from './ui.js'

const PAUSE = 500 // milliseconds between two messages
const LIFETIME = 70000 // milliseconds without a message after which a tab has crashed; hidden ones are slow

const channel = new BroadcastChannel('tusd-py-uploads')
const tabs = new Map() // by the number of a tab: its uploads, and when it told of them
let toldAt = 0
let toldCount = 0

/** Tell of the running uploads of this tab, each with name, sent and size in bytes. */
export function tellTabs(tab, uploads) {
  const isNew = uploads.length !== toldCount
  if (!isNew && (uploads.length === 0 || Date.now() - toldAt < PAUSE)) return
  toldAt = Date.now()
  toldCount = uploads.length
  channel.postMessage({ tab, uploads })
}

/** Show what the other tabs tell. */
export function showTabs() {
  channel.addEventListener('message', ({ data: { tab, uploads } }) => {
    tabs.set(tab, { uploads, at: Date.now() })
    for (const [other, { at }] of tabs) if (Date.now() - at > LIFETIME) tabs.delete(other)
    const items = [...tabs.values()].flatMap((one) => one.uploads).map(itemOf)
    element('other-items').replaceChildren(...items)
    element('others').hidden = items.length === 0
  })
}

function itemOf({ name, sent, size }) {
  const item = document.createElement('li')
  const bar = document.createElement('progress')
  bar.max = Math.max(size, 1)
  bar.value = sent
  bar.setAttribute('aria-label', text('progressOf', { name }))
  item.append(name, bar, text('of', { part: formatBytes(sent), whole: formatBytes(size) }))
  return item
}
