// Recordings on this device, in IndexedDB: what is known of each, and its bytes in numbered chunks. A chunk is written
// before it is sent, and a transaction counts when it has reached the disk.
const NAME = 'tusd-py-recordings'
const VERSION = 1

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })

/** Open the store; null where the browser has none, as some have in private windows. */
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, VERSION)
    request.onupgradeneeded = () => {
      request.result.createObjectStore('recordings', { keyPath: 'id' })
      request.result.createObjectStore('chunks', { keyPath: ['recording', 'number'] })
    }
    return new Store(await settled(request))
  } catch {
    return null
  }
}

const chunksOf = (id) => IDBKeyRange.bound([id], [id, []]) // an array is greater than every number

class Store {
  #database

  constructor(database) {
    this.#database = database
  }

  /** Run a transaction; its result counts when everything has reached the disk. */
  async #run(stores, mode, work) {
    const transaction = this.#database.transaction(stores, mode, { durability: 'strict' })
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve
      transaction.onabort = () => reject(transaction.error ?? new Error('the transaction was aborted'))
    })
    const result = work(transaction)
    await done
    return result
  }

  /** Write what is known of a recording. */
  async put(recording) {
    await this.#run(['recordings'], 'readwrite', (transaction) => transaction.objectStore('recordings').put(recording))
  }

  /** What is known of a recording; undefined if it was removed. */
  async get(id) {
    return (await this.#run(['recordings'], 'readonly', (one) => one.objectStore('recordings').get(id))).result
  }

  /** All recordings, the oldest first. */
  async list() {
    const request = await this.#run(['recordings'], 'readonly', (one) => one.objectStore('recordings').getAll())
    return request.result.sort((one, other) => one.startedAt - other.startedAt)
  }

  /** Write a chunk of a recording: its number, the offset of its first byte, and its bytes. */
  async addChunk(id, number, start, data) {
    const chunk = { recording: id, number, start, data }
    await this.#run(['chunks'], 'readwrite', (transaction) => transaction.objectStore('chunks').put(chunk))
  }

  /** The bytes of a chunk. */
  async chunk(id, number) {
    const request = await this.#run(['chunks'], 'readonly', (one) => one.objectStore('chunks').get([id, number]))
    if (request.result === undefined) throw new Error(`chunk ${number} of recording ${id} is missing`)
    return request.result.data
  }

  /** Number, start and size of every chunk, in order. */
  async chunks(id) {
    const found = []
    await this.#run(['chunks'], 'readonly', (transaction) => {
      const request = transaction.objectStore('chunks').openCursor(chunksOf(id))
      request.onsuccess = () => {
        const cursor = request.result
        if (cursor === null) return
        const { number, start, data } = cursor.value
        found.push({ number, start, size: data.byteLength })
        cursor.continue()
      }
    })
    return found
  }

  /** Remove a recording with its bytes. */
  async remove(id) {
    await this.#run(['recordings', 'chunks'], 'readwrite', (transaction) => {
      transaction.objectStore('recordings').delete(id)
      transaction.objectStore('chunks').delete(chunksOf(id))
    })
  }
}
