// The details of one upload on the administration page: its fields, its history, and what can be done with it.
import { call, Refused } from './admin-api.js'
import { timeOf } from './admin-table.js'
import { element, formatBytes, text } from './ui.js'

const FIELDS = [
  'id', 'status', 'offset', 'length', 'owner', 'filetype', 'created_at', 'updated_at', 'completed_at', 'expires_at',
  'client', 'concatenation', 'locked', 'url',
]

export class Details {
  #upload = null // that is shown
  #dialog = element('details')
  #onChange
  #contents = {} // of elements, to leave alone what has not changed: a selected text, a button with the focus

  /** Take what is called with a sentence after something was done with an upload, and without one after a failure. */
  constructor(onChange) {
    this.#onChange = onChange
    this.#dialog.addEventListener('close', () => (this.#upload = null))
  }

  /** The id of the upload that is shown; null without any. */
  get id() {
    return this.#upload?.id ?? null
  }

  /** Show an upload, and then its history. */
  open(upload) {
    this.#contents = {}
    element('details-error').textContent = ''
    element('details-history').replaceChildren()
    this.show(upload)
    this.#dialog.showModal()
    this.refresh()
  }

  /** Show the upload as it is now. */
  show(upload) {
    this.#upload = upload
    element('details-name').textContent = upload.filename ?? upload.id
    const entries = FIELDS.filter((name) => upload[name] !== null).map((name) => [text(`field_${name}`), shown(upload, name)])
    for (const [name, value] of Object.entries(upload.metadata)) {
      entries.push([text('field_metadata', { name }), typeof value === 'string' ? value : text('binary')])
    }
    this.#fill('details-fields', entries, ([label, value]) => [elementOf('dt', label), elementOf('dd', value)])
    const isOpen = upload.status === 'active'
    const actions = [
      ...(isOpen && upload.length === null ? ['complete'] : []),
      ...(isOpen ? ['expire'] : []),
      ...(['terminated', 'expired'].includes(upload.status) ? [] : ['terminate']),
      'close',
    ]
    this.#fill('details-actions', actions, (key) => [this.#button(key)])
  }

  /** Look at the upload and its history again. */
  async refresh() {
    const { id } = this
    if (id === null) return
    try {
      const [upload, { history }] = await Promise.all([call('GET', `uploads/${id}`), call('GET', `uploads/${id}/history`)])
      if (this.id !== id) return
      this.show(upload)
      this.#fill('details-history', history, (entry) => [elementOf('li', sentenceOf(entry))])
    } catch (error) {
      if (this.id !== id || !(error instanceof Refused)) return // the page tells that the server is away
      if (error.status === 404) this.#fill('details-actions', ['close'], (key) => [this.#button(key)])
      element('details-error').textContent = error.status === 404 ? text('detailsGone') : error.message
    }
  }

  #fill(id, items, make) {
    const content = JSON.stringify(items)
    if (this.#contents[id] === content) return
    this.#contents[id] = content
    element(id).replaceChildren(...items.flatMap(make))
  }

  /** A button for something that is done with the upload, once it is confirmed, or one that closes the details. */
  #button(key) {
    const button = elementOf('button', text(key))
    button.type = 'button'
    button.className = { close: 'quiet', complete: '' }[key] ?? 'danger'
    button.addEventListener('click', () => (key === 'close' ? this.#dialog.close() : this.#act(key)))
    return button
  }

  async #act(key) {
    const { id, filename } = this.#upload
    const name = filename ?? id
    if (!confirm(text(`confirm_${key}`, { name }))) return
    try {
      await (key === 'terminate' ? call('DELETE', `uploads/${id}`) : call('POST', `uploads/${id}/${key}`))
      this.#dialog.close()
      this.#onChange(text(`done_${key}`, { name }))
    } catch (error) {
      element('details-error').textContent = error instanceof Refused ? error.message : text('unreachable')
      this.#onChange()
    }
  }
}

function elementOf(name, content) {
  const one = document.createElement(name)
  one.textContent = content
  return one
}

function shown(upload, name) {
  if (name.endsWith('_at')) return timeOf(upload[name])
  if (name === 'offset' || name === 'length') return `${upload[name]} (${formatBytes(upload[name])})`
  if (name === 'locked') return text(upload[name] ? 'yes' : 'no')
  return String(upload[name])
}

/** An entry of the history for people. */
function sentenceOf({ event, time, offset, actor, client, code }) {
  const parts = [text(`history_${event}`)]
  if (offset > 0) parts.push(text('historyAt', { size: formatBytes(offset) }))
  if (actor !== null) parts.push(text('historyBy', { actor }))
  if (client !== null) parts.push(text('historyFrom', { client }))
  if (code !== null) parts.push(code)
  return `${timeOf(time)}: ${parts.join(', ')}`
}
