// The copy of one recording on this device, to which the recorder appends and from which the upload is sent. Any byte of
// it can be read at any time.
export class LocalCopy {
  #store
  #id
  #chunks = [] // {number, start, size, data}: `data` is null once it is in the store
  #writing = Promise.resolve()
  #waiting = new Set()

  size = 0 // bytes that have been appended
  available = 0 // bytes that are in the store, or can only be kept in memory
  inMemory = 0 // bytes that the store has not taken
  ended = false // nothing more is appended

  /** `chunks` are those that the store has already: number, start and size of each. */
  constructor(store, id, chunks = []) {
    this.#store = store
    this.#id = id
    this.#chunks = chunks.map((chunk) => ({ ...chunk, data: null }))
    const last = chunks.at(-1)
    this.size = last === undefined ? 0 : last.start + last.size
    this.available = this.size
  }

  /** Append a blob. Returns a promise that is kept when the bytes are in the store, or known to stay in memory. */
  append(blob) {
    this.#writing = this.#writing.then(async () => {
      this.#chunks.push({ number: this.#chunks.length, start: this.size, size: blob.size, data: blob })
      this.size += blob.size
      await this.#write()
      this.available = this.size
      this.#wake()
    })
    return this.#writing
  }

  /** Write what is in memory, the oldest first; what the disk has no room for is tried again with the next chunk. */
  async #write() {
    const unwritten = this.#chunks.filter((chunk) => chunk.data !== null)
    try {
      for (const chunk of unwritten) {
        await this.#store.addChunk(this.#id, chunk.number, chunk.start, await chunk.data.arrayBuffer())
        chunk.data = null
      }
    } catch {
      // The disk is full, or the browser has no store: `inMemory` says so.
    }
    this.inMemory = unwritten.reduce((total, chunk) => total + (chunk.data === null ? 0 : chunk.size), 0)
  }

  /** Declare that nothing more is appended, once everything so far is available. */
  async end() {
    await this.#writing
    this.ended = true
    this.#wake()
  }

  /** Wait until there are bytes after an offset, or nothing more comes. */
  async reach(offset) {
    while (this.available <= offset && !this.ended) await new Promise((resolve) => this.#waiting.add(resolve))
  }

  #wake() {
    for (const resolve of this.#waiting) resolve()
    this.#waiting.clear()
  }

  /** The bytes from one offset to another, of those that are available. Fails if one of them is missing. */
  async read(start, end) {
    const pieces = []
    let offset = start
    for (let index = this.#indexOf(start); index < this.#chunks.length && offset < end; index += 1) {
      const chunk = this.#chunks[index]
      if (chunk.start > offset) break
      const piece = (await this.#bytes(chunk)).slice(offset - chunk.start, end - chunk.start)
      pieces.push(piece)
      offset += piece.size
    }
    if (offset < end) throw new Error(`byte ${offset} of the recording is missing on this device`)
    return new Blob(pieces)
  }

  /** All bytes that there are. */
  async everything(type) {
    const pieces = []
    for (const chunk of [...this.#chunks]) pieces.push(await this.#bytes(chunk))
    return new Blob(pieces, { type })
  }

  async #bytes(chunk) {
    return chunk.data ?? new Blob([await this.#store.chunk(this.#id, chunk.number)])
  }

  /** The index of the first chunk that ends after an offset. */
  #indexOf(offset) {
    let [low, high] = [0, this.#chunks.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#chunks[middle].start + this.#chunks[middle].size <= offset) low = middle + 1
      else high = middle
    }
    return low
  }
}
