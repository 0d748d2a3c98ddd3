// The table of uploads on the administration page.
import { element, formatBytes, formatTime, RateMeter, text } from './ui.js'

const RATE_WINDOW = 6000 // milliseconds, where no stream tells the rate
const OPEN = ['active', 'finishing']
const ENDS_OF_REQUESTS = ['interrupted', 'finishing', 'finished', 'failed', 'terminated', 'expired']
const BYTES_COME = ['progress', 'resumed']

/** The state for people: an active upload is either receiving or waiting for its client. */
export function stateOf(upload) {
  const key = upload.status === 'active' ? (upload.locked ? 'receiving' : 'waiting') : upload.status
  return text(`state_${key}`)
}

export const timeOf = (value) => (value === null ? '' : new Date(value).toLocaleString())

class Row {
  element = document.createElement('tr')
  #name = document.createElement('button')
  #bar = document.createElement('progress')
  #cells = {}
  #meter = new RateMeter(RATE_WINDOW)
  #heardAt = -Infinity // time of the newest message of the stream
  #numbers = document.createElement('span')

  constructor(onOpen) {
    for (const name of ['name', 'state', 'progress', 'owner', 'created']) {
      this.#cells[name] = this.element.insertCell()
    }
    this.#name.type = 'button'
    this.#name.className = 'name'
    this.#name.addEventListener('click', () => onOpen(this.upload))
    this.#cells.name.append(this.#name)
    this.#cells.progress.append(this.#bar, this.#numbers)
  }

  /** Show an upload as the list had it at a time; what was heard since is newer. */
  show(upload, time) {
    if (this.#heardAt > time) {
      const { status, offset, length, locked } = this.upload
      this.upload = { ...upload, status, offset, length, locked }
    } else this.upload = upload
    this.#meter.add(this.upload.offset)
    if (performance.now() - this.#heardAt > RATE_WINDOW) this.#draw(this.#meter.rate, null)
    else if (this.#heardAt <= time) this.#draw(this.rate, this.eta)
  }

  /** Show what a message of the stream tells. */
  hear({ type, status, offset, length, rate, eta }) {
    const locked = BYTES_COME.includes(type) || (this.upload.locked && !ENDS_OF_REQUESTS.includes(type))
    this.upload = { ...this.upload, status, offset, length, locked }
    this.#heardAt = performance.now()
    this.#meter.add(offset)
    Object.assign(this, { rate, eta })
    this.#draw(rate, eta)
  }

  #draw(rate, eta) {
    const { id, status, offset, length, filename, owner, created_at: created } = this.upload
    const name = filename ?? id
    this.element.dataset.id = id
    this.element.dataset.status = status
    this.element.dataset.offset = String(offset)
    this.#name.textContent = name
    this.#cells.state.textContent = stateOf(this.upload)
    this.#bar.hidden = length === null // nobody knows how much is left
    this.#bar.max = Math.max(length ?? offset, 1)
    this.#bar.value = status === 'complete' ? this.#bar.max : offset
    this.#bar.setAttribute('aria-label', text('progressOf', { name }))
    const parts = [length === null ? text('soFar', { size: formatBytes(offset) }) : sizeOf(offset, length)]
    if (status === 'active' && rate > 0) parts.push(text('speed', { rate: formatBytes(rate) }))
    if (status === 'active' && eta > 0) parts.push(text('timeLeft', { time: formatTime(eta) }))
    this.#numbers.textContent = parts.join(', ')
    this.#cells.owner.textContent = owner ?? ''
    this.#cells.created.textContent = timeOf(created)
  }
}

const sizeOf = (offset, length) =>
  offset === length ? formatBytes(length) : text('of', { part: formatBytes(offset), whole: formatBytes(length) })

/** The rows of the table. */
export class Table {
  #rows = new Map() // by the id of the upload
  #onOpen

  /** Take what is called with an upload whose details are asked for. */
  constructor(onOpen) {
    this.#onOpen = onOpen
  }

  /** The ids of the shown uploads that are not finished. */
  get openIds() {
    return [...this.#rows.values()].filter(({ upload }) => OPEN.includes(upload.status)).map(({ upload }) => upload.id)
  }

  /** An upload as it is known now. */
  upload(id) {
    return this.#rows.get(id)?.upload ?? null
  }

  /** Show these uploads, as the list had them at a time. */
  show(uploads, time) {
    const gone = new Set(this.#rows.keys())
    let before = null
    for (const upload of uploads) {
      gone.delete(upload.id)
      const row = this.#rows.get(upload.id) ?? new Row(this.#onOpen)
      this.#rows.set(upload.id, row)
      row.show(upload, time)
      // Rows are moved only where the order has changed, so that the focus stays.
      const place = before === null ? element('rows').firstChild : before.nextSibling
      if (place !== row.element) element('rows').insertBefore(row.element, place)
      before = row.element
    }
    for (const id of gone) {
      this.#rows.get(id).element.remove()
      this.#rows.delete(id)
    }
  }

  hear(message) {
    this.#rows.get(message.id)?.hear(message)
  }
}
