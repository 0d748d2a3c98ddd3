// The copies of chosen files that the browser keeps, so that uploads go on after a reload.
const OF_FIRST_TAB = 1024 * 1024 * 1024 // bytes

/**
 * The bounds of the copies of a tab, by its number. Each tab has half as much as the one before, so that all of them have
 * 3 GiB at most: a tab may be beyond its total by one file, since Uppy looks at the total before it adds one.
 */
export function boundsOfCopies(tab) {
  const maxTotalSize = OF_FIRST_TAB / 2 ** tab
  return { maxFileSize: maxTotalSize / 2, maxTotalSize }
}
