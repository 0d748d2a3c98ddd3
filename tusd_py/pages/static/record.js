// The recorder: what it records is written to this device first and sent to the server as it grows.
import { keepPage } from './keep.js'
import { canRecord, extensionOf, Recorder } from './recorder.js'
import { Recording } from './recording.js'
import { openStore } from './store.js'
import { announce, element, fillTexts, formatBytes, formatTime, listenForToken, loadConfig, text } from './ui.js'

const TICK = 200 // milliseconds between two looks at clock and level

fillTexts()
const store = await openStore()
const config = await loadConfig()
const rows = new Set()
let recorder = null
let running = null // the row of the recording that grows
let lastStopped = null // the row that is told of when all of it is on the server

/** A recording in the list. */
class Row {
  #recording
  #item = document.createElement('li')
  #state = document.createElement('p')
  #bar = document.createElement('progress')
  #link = document.createElement('a')
  #discardButton
  #media = null

  constructor(recording) {
    this.#recording = recording
    this.#discardButton = this.#button('discard', () => this.#discard())
    const name = document.createElement('strong')
    name.textContent = recording.known.name
    this.#bar.setAttribute('aria-label', text('progressOf', { name: recording.known.name }))
    this.#link.textContent = text('openOnServer')
    this.#link.className = 'button quiet'
    this.#link.hidden = true
    const buttons = document.createElement('div')
    buttons.className = 'controls'
    buttons.append(
      this.#button('saveCopy', () => this.#save()),
      this.#button('play', () => this.#play()),
      this.#link,
      this.#discardButton,
    )
    this.#item.append(name, this.#bar, this.#state, buttons)
    element('recording-items').prepend(this.#item)
    element('recordings').hidden = false
    rows.add(this)
    recording.send(config.endpoint, () => this.show())
    this.show()
  }

  get recording() {
    return this.#recording
  }

  #button(key, action) {
    const button = document.createElement('button')
    button.type = 'button'
    button.className = 'quiet'
    button.textContent = text(key)
    button.setAttribute('aria-label', text('about', { action: text(key), name: this.#recording.known.name }))
    button.addEventListener('click', action)
    return button
  }

  show() {
    const { copy, state, sent, reason, known, isRunning } = this.#recording
    this.#item.dataset.state = state
    this.#item.dataset.size = copy.size
    this.#item.dataset.sent = sent
    this.#bar.max = Math.max(copy.size, 1)
    this.#bar.value = state === 'done' ? this.#bar.max : sent
    const sizes = { size: formatBytes(copy.size), sent: formatBytes(sent) }
    const parts = [state === 'done' ? text('stateDone', sizes) : text('sizes', sizes)]
    if (state === 'refused') parts.push(text('stateRefused', { reason }))
    if (state === 'away' || state === 'token') parts.push(text(state === 'away' ? 'stateAway' : 'stateToken'))
    if (copy.inMemory > 0 && state !== 'done') parts.push(text('stateMemory', { size: formatBytes(copy.inMemory) }))
    this.#state.textContent = parts.join(' ')
    this.#state.className = copy.inMemory > 0 || state === 'refused' ? 'bad' : state === 'done' ? 'good' : ''
    this.#discardButton.disabled = isRunning
    this.#link.hidden = state !== 'done' || !config.download
    if (known.url !== null) this.#link.href = known.url
    if (state === 'done' && !isRunning && this === lastStopped) announce(text('allSent'))
  }

  async #save() {
    const link = document.createElement('a')
    link.href = URL.createObjectURL(await this.#recording.copy.everything(this.#recording.known.type))
    link.download = this.#recording.known.name
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 60000)
  }

  async #play() {
    this.#media?.remove()
    this.#media = document.createElement(this.#recording.known.type.startsWith('video') ? 'video' : 'audio')
    this.#media.controls = true
    this.#media.src = URL.createObjectURL(await this.#recording.copy.everything(this.#recording.known.type))
    this.#item.append(this.#media)
    this.#media.play().catch(() => {}) // the browser wants another click
  }

  async #discard() {
    const { state, known } = this.#recording
    if (state !== 'done' && !confirm(text('discardUnsent', { name: known.name }))) return
    await this.#recording.discard()
    rows.delete(this)
    this.#item.remove()
    element('recordings').hidden = rows.size === 0
  }
}

/** The name of a file by the time of day. */
function nameOf(type) {
  const now = new Date()
  const two = (number) => String(number).padStart(2, '0')
  const day = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`
  const time = `${two(now.getHours())}.${two(now.getMinutes())}.${two(now.getSeconds())}`
  return text('recordingName', { day, time, extension: extensionOf(type) })
}

async function start() {
  element('record').disabled = true
  try {
    recorder = await Recorder.open(document.querySelector('input[name=kind]:checked').value)
  } catch (error) {
    announce(text(error.name === 'NotFoundError' ? 'noMicrophone' : 'notAllowed'))
    element('record').disabled = false
    return
  }
  navigator.storage?.persist?.() // so that the browser does not make room by removing recordings
  running = new Row(await Recording.begin(store, nameOf(recorder.type), recorder.type))
  const { recording } = running
  try {
    recorder.start(
      (blob) => recording.copy.append(blob),
      () => ended(recording),
    )
  } catch {
    await ended(recording)
    announce(text('noMicrophone'))
    return
  }
  showPreview(recorder.stream)
  element('kinds').disabled = true
  element('stop').disabled = false
  element('stop').focus()
  announce(text('recordingNow'))
}

function showPreview(stream) {
  const preview = element('preview')
  preview.hidden = stream === null || stream.getVideoTracks().length === 0
  preview.srcObject = preview.hidden ? null : stream
  if (!preview.hidden) preview.play().catch(() => {}) // without a preview the recording goes on
}

async function ended(recording) {
  lastStopped = running
  running = null
  recorder = null
  showPreview(null)
  element('stop').disabled = true
  element('kinds').disabled = false
  element('record').disabled = false
  element('record').focus()
  announce(text('stopped'))
  await recording.end()
}

function tick() {
  const level = recorder === null ? 0 : Math.round(recorder.level * 100)
  element('level-bar').style.width = `${level}%`
  element('level').setAttribute('aria-valuenow', String(level))
  if (running === null) return
  element('clock').textContent = formatTime((Date.now() - running.recording.known.startedAt) / 1000)
  running.show()
}

addEventListener('beforeunload', (event) => {
  if ([...rows].some((row) => row.recording.isAtRisk)) event.preventDefault()
})
listenForToken(() => {
  for (const row of rows) row.recording.hurry()
})
element('record').addEventListener('click', start)
element('stop').addEventListener('click', () => recorder?.stop())
setInterval(tick, TICK)

Recording.restore(store, (recording) => new Row(recording))
if (!canRecord()) announce(text('cannotRecord'))
else if (!config.deferred_length) announce(text('noDeferredLength'))
else element('record').disabled = false
keepPage('record-worker.js')
