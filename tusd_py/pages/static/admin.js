// The administration page: a live table of uploads, their details, and what can be done with them.
import { call, credentials, forgetToken, Refused, STREAM, token, useToken } from './admin-api.js'
import { Details } from './admin-details.js'
import { showStats, STATES } from './admin-numbers.js'
import { Table } from './admin-table.js'
import { LiveUploads } from './live.js'
import { announce, askForConfig, element, fillTexts, text } from './ui.js'

const REFRESH = 2000 // milliseconds between two looks at the server
const REFRESH_BESIDE_STREAM = 5000 // where a stream tells of the progress
const SOON = 200 // milliseconds until a look at what a stream has told of
const PAGE = 50 // uploads
const ORDERS = ['-created_at', 'created_at', '-offset', '-length', 'expires_at']

let pages = 1 // that are shown
let timer = null
let newest = 0 // number of the newest look at the server, which alone counts
let knowsPages = false // whether the links to other pages are shown where there are such pages
const live = new LiveUploads(STREAM, hear)
const details = new Details((sentence = null) => {
  if (sentence !== null) say(sentence)
  refresh()
})
const table = new Table((upload) => details.open(upload))

// Refreshing

function refreshIn(milliseconds) {
  clearTimeout(timer)
  timer = setTimeout(refresh, milliseconds)
}

/** Learn from the server which pages there are beside this one. */
async function showLinks() {
  const config = await askForConfig()
  if (config === null) return
  for (const id of ['upload-link', 'record-link']) element(id).hidden = !config.uploads
  knowsPages = true
}

async function refresh() {
  clearTimeout(timer)
  newest += 1
  const [number, time] = [newest, performance.now()]
  if (!knowsPages) await showLinks()
  try {
    const [{ uploads, next }, stats] = await Promise.all([load(), call('GET', 'stats')])
    if (number !== newest) return
    element('token-form').hidden = true
    element('content').hidden = false
    table.show(uploads, time)
    element('more').hidden = next === null
    element('empty').hidden = uploads.length > 0 || next !== null
    showStats(stats)
    follow()
    details.refresh()
    if (element('status').dataset.error) say('')
  } catch (error) {
    if (number !== newest) return
    if (!(error instanceof Refused)) say(text('unreachable'), true)
    else if (error.status === 401 || error.status === 403) {
      askForToken(error.status)
      return // until there is another token
    } else say(error.message, true)
  }
  refreshIn(live.isConnected ? REFRESH_BESIDE_STREAM : REFRESH)
}

/** Follow what is shown; a hidden page gives its connection back, since browsers have six for all tabs of a server. */
function follow() {
  if (document.hidden) live.stop()
  else live.follow(table.openIds, credentials())
}

function say(sentence, isError = false) {
  announce(sentence)
  if (isError) element('status').dataset.error = 'true'
  else delete element('status').dataset.error
}

/** The uploads of all pages that are shown. */
async function load() {
  const uploads = []
  let next = ''
  for (let number = 0; number < pages && next !== null; number += 1) {
    const wanted = { q: element('search').value.trim(), state: element('state').value, order: element('order').value }
    const page = await call('GET', 'uploads', { ...wanted, limit: PAGE, after: next })
    uploads.push(...page.uploads)
    next = page.next
  }
  return { uploads, next }
}

/** Take a message of the stream; one that is no progress may change the list, the numbers and the history. */
function hear(message) {
  table.hear(message)
  const upload = table.upload(message.id)
  if (message.id === details.id && upload !== null) details.show(upload)
  if (!['progress', 'snapshot'].includes(message.type)) refreshIn(SOON)
}

function askForToken(status) {
  live.stop()
  element('content').hidden = true
  element('token-form').hidden = false
  element('token').focus()
  const key = status === 403 ? 'adminForbidden' : token() ? 'adminTokenWrong' : 'tokenNeeded'
  say(text(key), true)
  forgetToken()
}

// Controls

function fillSelect(id, values, key) {
  const options = values.map((value) => new Option(text(`${key}_${value === '' ? 'any' : value}`), value))
  element(id).replaceChildren(...options)
}

function changed() {
  pages = 1
  refresh()
}

fillTexts()
fillSelect('state', ['', ...STATES], 'state')
fillSelect('order', ORDERS, 'order')
element('token-form').addEventListener('submit', (event) => {
  event.preventDefault()
  useToken(element('token').value.trim())
  element('token').value = ''
  say('')
  refresh()
})
document.addEventListener('visibilitychange', follow)
element('filters').addEventListener('submit', (event) => event.preventDefault())
for (const id of ['search', 'state', 'order']) element(id).addEventListener('input', changed)
element('more').addEventListener('click', () => {
  pages += 1
  refresh()
})
refresh()
