// One recording: its copy on this device, its upload, and what is known of both after a reload.
import { LocalCopy } from './copy.js'
import { Sender } from './sender.js'

const DAY = 86400000 // milliseconds

/** Wait for the lock of a recording, which no other tab has then until this one is closed. */
const hold = (id) =>
  new Promise((resolve) => {
    navigator.locks.request(`tusd-py-recording-${id}`, () => {
      resolve()
      return new Promise(() => {})
    })
  })

export class Recording {
  #store
  #sender = null
  copy

  /** `known`: id, name, type, startedAt, url, endedAt, doneAt; times in milliseconds, null for not yet. */
  constructor(store, known, copy) {
    this.#store = store
    this.known = known
    this.copy = copy
  }

  /** Begin a new recording. */
  static async begin(store, name, type) {
    const known = { id: crypto.randomUUID(), name, type, startedAt: Date.now(), url: null, endedAt: null, doneAt: null }
    await hold(known.id)
    const recording = new Recording(store, known, new LocalCopy(store, known.id))
    await recording.#save()
    return recording
  }

  /**
   * Hand over the recordings of this device, each as soon as no other tab has it. Those that are on the server for a day
   * are removed.
   */
  static async restore(store, onFound) {
    for (const { id } of store === null ? [] : await store.list()) {
      hold(id).then(async () => {
        const known = await store.get(id) // as the other tab has left it
        if (known === undefined) return
        if (known.doneAt !== null && known.doneAt < Date.now() - DAY) {
          await store.remove(id)
          return
        }
        const copy = new LocalCopy(store, id, await store.chunks(id))
        await copy.end()
        onFound(new Recording(store, known, copy))
      })
    }
  }

  get state() {
    return this.known.doneAt === null ? (this.#sender?.state ?? 'waiting') : 'done'
  }

  get reason() {
    return this.#sender?.reason ?? ''
  }

  get sent() {
    return this.known.doneAt === null ? (this.#sender?.sent ?? 0) : this.copy.size
  }

  get isRunning() {
    return !this.copy.ended
  }

  /** Whether closing the page loses bytes. */
  get isAtRisk() {
    return this.isRunning || (this.known.doneAt === null && this.copy.inMemory > 0)
  }

  /** Send the recording until the server has all of it, which is told by `onChange`. */
  send(endpoint, onChange) {
    if (this.known.doneAt !== null) return
    this.#sender = new Sender(this.copy, {
      endpoint,
      url: this.known.url,
      metadata: { filename: this.known.name, filetype: this.known.type },
      onChange,
      onUrl: (url) => this.#save({ url }),
      onDone: () => {
        this.#save({ doneAt: Date.now() })
        onChange()
      },
    })
    this.#sender.start()
  }

  hurry() {
    this.#sender?.hurry()
  }

  /** Nothing more is recorded. */
  async end() {
    await this.copy.end()
    await this.#save({ endedAt: Date.now() })
  }

  /** Remove the copy on this device; what the server has stays there. */
  async discard() {
    this.#sender?.stop()
    await this.#store?.remove(this.known.id)
  }

  async #save(changes = {}) {
    Object.assign(this.known, changes)
    try {
      await this.#store?.put({ ...this.known })
    } catch {
      // The disk is full: the chunks tell the same, and the page says so.
    }
  }
}
