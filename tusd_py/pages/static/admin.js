// The administration page: a live table of uploads, their details, and what can be done with them.
import { announce, element, fillTexts, formatBytes, RateMeter, text } from './ui.js'

const REFRESH = 2000 // milliseconds between two looks at the server
const PAGE = 50 // uploads
const TOKEN = 'tusd-py-admin-token' // in the session storage, which ends with the tab
const STATES = ['active', 'finishing', 'complete', 'terminated', 'expired']
const ORDERS = ['-created_at', 'created_at', '-offset', '-length', 'expires_at']
const FIELDS = [
  'id', 'status', 'offset', 'length', 'owner', 'filetype', 'created_at', 'updated_at', 'completed_at', 'expires_at',
  'client', 'concatenation', 'locked', 'url',
]
const OWNERS = 10 // in the chart
const API = new URL('admin/api/', document.baseURI)

let token = sessionStorage.getItem(TOKEN) ?? ''
let pages = 1 // that are shown
let timer = null
const rows = new Map() // by the id of the upload

class Refused extends Error {
  constructor(status, reason) {
    super(reason)
    this.status = status
  }
}

/** Make a request to the API; parameters that are empty are left out. */
async function call(method, path, parameters = {}) {
  const url = new URL(path, API)
  for (const [name, value] of Object.entries(parameters)) if (value !== '') url.searchParams.set(name, value)
  const headers = token ? { Authorization: `Bearer ${token}` } : {}
  const answer = await fetch(url, { method, headers, cache: 'no-store' })
  if (answer.status === 204) return null
  const body = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Refused(answer.status, body.detail ?? body.title ?? String(answer.status))
  return body
}

// Refreshing

async function refresh() {
  clearTimeout(timer)
  try {
    const [{ uploads, next }, stats] = await Promise.all([load(), call('GET', 'stats')])
    element('token-form').hidden = true
    element('content').hidden = false
    showUploads(uploads, next)
    showStats(stats)
    if (element('status').dataset.error) say('')
  } catch (error) {
    if (!(error instanceof Refused)) say(text('unreachable'), true)
    else if (error.status === 401 || error.status === 403) {
      askForToken(error.status)
      return // until there is another token
    } else say(error.message, true)
  }
  timer = setTimeout(refresh, REFRESH)
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

function askForToken(status) {
  element('content').hidden = true
  element('token-form').hidden = false
  element('token').focus()
  const key = status === 403 ? 'adminForbidden' : token ? 'adminTokenWrong' : 'tokenNeeded'
  say(text(key), true)
  token = ''
  sessionStorage.removeItem(TOKEN)
}

// The table

/** The state for people: an active upload is either receiving or waiting for its client. */
function stateOf(upload) {
  const key = upload.status === 'active' ? (upload.locked ? 'receiving' : 'waiting') : upload.status
  return text(`state_${key}`)
}

const timeOf = (value) => (value === null ? '' : new Date(value).toLocaleString())

class Row {
  element = document.createElement('tr')
  #name = document.createElement('button')
  #bar = document.createElement('progress')
  #cells = {}
  #meter = new RateMeter(3 * REFRESH)

  constructor() {
    for (const name of ['name', 'state', 'progress', 'owner', 'created']) {
      this.#cells[name] = this.element.insertCell()
    }
    this.#name.type = 'button'
    this.#name.className = 'name'
    this.#name.addEventListener('click', () => showDetails(this.upload))
    this.#cells.name.append(this.#name)
    this.numbers = document.createElement('span')
    this.#cells.progress.append(this.#bar, this.numbers)
  }

  show(upload) {
    this.upload = upload
    const { id, status, offset, length, filename, owner, created_at: created } = upload
    const name = filename ?? id
    this.element.dataset.id = id
    this.element.dataset.status = status
    this.element.dataset.offset = String(offset)
    this.#name.textContent = name
    this.#cells.state.textContent = stateOf(upload)
    this.#bar.max = Math.max(length ?? offset, 1)
    this.#bar.value = status === 'complete' ? this.#bar.max : offset
    this.#bar.setAttribute('aria-label', text('progressOf', { name }))
    this.#meter.add(offset)
    const { rate } = this.#meter
    const size = length === null ? text('soFar', { size: formatBytes(offset) }) : sizeOf(offset, length)
    this.numbers.textContent = rate > 0 ? `${size}, ${text('speed', { rate: formatBytes(rate) })}` : size
    this.#cells.owner.textContent = owner ?? ''
    this.#cells.created.textContent = timeOf(created)
  }
}

const sizeOf = (offset, length) =>
  offset === length ? formatBytes(length) : text('of', { part: formatBytes(offset), whole: formatBytes(length) })

function showUploads(uploads, next) {
  const gone = new Set(rows.keys())
  let before = null
  for (const upload of uploads) {
    gone.delete(upload.id)
    const row = rows.get(upload.id) ?? new Row()
    rows.set(upload.id, row)
    row.show(upload)
    // Rows are moved only where the order has changed, so that the focus stays.
    const place = before === null ? element('rows').firstChild : before.nextSibling
    if (place !== row.element) element('rows').insertBefore(row.element, place)
    before = row.element
  }
  for (const id of gone) {
    rows.get(id).element.remove()
    rows.delete(id)
  }
  element('more').hidden = next === null
  element('empty').hidden = uploads.length > 0 || next !== null
}

// Numbers and charts

function showStats({ by_status: byStatus, by_owner: byOwner, rates, free_space: free }) {
  const numbers = [
    ['numberActive', String(byStatus.active.count)],
    ['numberComplete', String(byStatus.complete.count)],
    ['numberStored', formatBytes(Object.values(byStatus).reduce((sum, share) => sum + share.bytes, 0))],
    ['numberRate', text('speed', { rate: formatBytes(rates.received) })],
    ['numberFree', free === null ? text('unknown') : formatBytes(free)],
  ]
  const items = numbers.map(([key, value]) => {
    const item = document.createElement('li')
    const number = document.createElement('strong')
    const label = document.createElement('span')
    number.textContent = value
    label.textContent = text(key)
    item.append(number, label)
    return item
  })
  element('numbers').replaceChildren(...items)
  const shown = STATES.filter((state) => byStatus[state]?.count > 0)
  showChart('by-status', shown.map((state) => [text(`state_${state}`), byStatus[state]]))
  showChart('by-owner', byOwner.slice(0, OWNERS).map(({ owner, ...share }) => [owner ?? text('noOwner'), share]))
}

function showChart(id, shares) {
  const most = Math.max(1, ...shares.map(([, share]) => share.bytes))
  const items = shares.map(([label, share]) => {
    const item = document.createElement('li')
    const bar = document.createElement('span')
    bar.className = 'bar'
    bar.style.width = `${(100 * share.bytes) / most}%`
    item.append(text('share', { label, count: share.count, size: formatBytes(share.bytes) }), bar)
    return item
  })
  element(id).replaceChildren(...items)
}

// Details

const dialog = element('details')

function showDetails(upload) {
  element('details-name').textContent = upload.filename ?? upload.id
  element('details-error').textContent = ''
  const entries = FIELDS.filter((name) => upload[name] !== null).map((name) => [text(`field_${name}`), shown(upload, name)])
  for (const [name, value] of Object.entries(upload.metadata)) {
    entries.push([text('field_metadata', { name }), typeof value === 'string' ? value : text('binary')])
  }
  const parts = entries.flatMap(([label, value]) => {
    const [term, description] = [document.createElement('dt'), document.createElement('dd')]
    term.textContent = label
    description.textContent = value
    return [term, description]
  })
  element('details-fields').replaceChildren(...parts)
  const isOpen = upload.status === 'active'
  element('details-actions').replaceChildren(
    ...(isOpen && upload.length === null ? [action('complete', 'POST', `uploads/${upload.id}/complete`, upload)] : []),
    ...(isOpen ? [action('expire', 'POST', `uploads/${upload.id}/expire`, upload)] : []),
    action('terminate', 'DELETE', `uploads/${upload.id}`, upload),
    closeButton(),
  )
  dialog.showModal()
}

function shown(upload, name) {
  if (name.endsWith('_at')) return timeOf(upload[name])
  if (name === 'offset' || name === 'length') return `${upload[name]} (${formatBytes(upload[name])})`
  if (name === 'locked') return text(upload[name] ? 'yes' : 'no')
  return String(upload[name])
}

/** A button for something that is done with an upload, once it is confirmed. */
function action(key, method, path, upload) {
  const button = document.createElement('button')
  button.type = 'button'
  button.textContent = text(key)
  button.className = key === 'complete' ? '' : 'danger'
  button.addEventListener('click', async () => {
    const name = upload.filename ?? upload.id
    if (!confirm(text(`confirm_${key}`, { name }))) return
    try {
      await call(method, path)
      dialog.close()
      say(text(`done_${key}`, { name }))
    } catch (error) {
      element('details-error').textContent = error instanceof Refused ? error.message : text('unreachable')
    }
    refresh()
  })
  return button
}

function closeButton() {
  const button = document.createElement('button')
  button.type = 'button'
  button.className = 'quiet'
  button.textContent = text('close')
  button.addEventListener('click', () => dialog.close())
  return button
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
  token = element('token').value.trim()
  sessionStorage.setItem(TOKEN, token)
  element('token').value = ''
  say('')
  refresh()
})
element('filters').addEventListener('submit', (event) => event.preventDefault())
for (const id of ['search', 'state', 'order']) element(id).addEventListener('input', changed)
element('more').addEventListener('click', () => {
  pages += 1
  refresh()
})
refresh()
